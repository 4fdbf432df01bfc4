"""The Flower ClientApp: it trains, evaluates and answers queries. Simulations and containers run the same app."""

from collections.abc import Callable

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fedssl.clients.kept_rounds import go_to_counted_round
from fedssl.clients.local_data import local_data
from fedssl.clients.own_folder import kept_in_folder
from fedssl.clients.privacy import (
    answer_if_admitted,
    clip_and_add_noise,
    needs_secret_noise,
    refuse_below_floor,
)
from fedssl.clients.resident import Resident, resident
from fedssl.clients.sent_log import with_sent_log
from fedssl.clients.state import (
    fixed_records,
    kept_slots,
    refuse_divergence,
    save_state,
    shared_state,
)
from fedssl.core import rng
from fedssl.core.trust import trust_only, trusting
from fedssl.data.shard import Shard
from fedssl.exchange import protocol
from fedssl.exchange.disclosure import may_leave, metrics_that_may_leave
from fedssl.exchange.packing import answer_as_asked
from fedssl.experiment.client_settings import ClientSettings
from fedssl.metrics.accuracy import evaluate as evaluate_network
from fedssl.metrics.drift import update_norm
from fedssl.training.learn import learn
from fedssl.training.loop import FitReport

app = ClientApp()

Work = Callable[[Message, Context, protocol.Request, Resident], Message]
"""A function that makes the reply to a request which the node may answer."""


def with_allowed_plugins(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Run an app that may import built-in plug-ins and the modules that the node's config allows, and no other module.

    A server can name any module in its request, and importing one runs its code.
    """
    allowed = context.node_config.get(protocol.ALLOWED_PLUGINS, "")
    with trusting(trust_only(str(allowed))):
        return call_next(message, context)


MODS: list[Mod] = [answer_as_asked, with_sent_log, protocol.reply_or_explain, with_allowed_plugins]
"""What is done around every request, the outermost first. The log says what was sent before it was packed."""


@app.train(mods=MODS)
def train(message: Message, context: Context) -> Message:
    """Train the received weights on the local shard for one round and send them back.

    A node with several devices trains the client with a process on each of them; see `fedssl.training.team`.
    """
    return _answered(_train, message, context)


def _answered(work: Work, message: Message, context: Context) -> Message:
    """Read a request, and return the reply that `work` makes, if the node may answer the request."""
    request = protocol.read_request(message)
    here = resident(request.experiment, device_of(context), request.terms)
    return answer_if_admitted(
        message,
        context,
        here.experiment,
        request.server_round,
        lambda: work(message, context, request, here),
    )


def _train(
    message: Message, context: Context, request: protocol.Request, here: Resident
) -> Message:
    devices = devices_of(context)
    with kept_in_folder(context, request):
        if len(devices) == 1:
            return train_here(message, context, request, here)
        from fedssl.clients.team_processes import run_in_team  # few nodes need torch.distributed

        return run_in_team(
            devices, message, context, lambda: train_here(message, context, request, here)
        )


def train_here(
    message: Message, context: Context, request: protocol.Request, here: Resident
) -> Message:
    """Train on one device, as a process of the current team, and return the reply."""
    # Put the client into the process's network: its images, the server's weights, its private weights.
    experiment, recipe, weights = here.experiment, here.recipe, here.weights
    set_threads(experiment)
    local = local_data(experiment, request.terms, context)
    shard = local.shard().to(torch.device(device_of(context)))
    go_to_counted_round(
        context.state,
        request,
        fixed_records(recipe, request.phase),
        keeps=bool(recipe.slots_in("client") or weights.private),
    )
    weights.load(request.arrays, context.state)
    report, state = learn(
        here.network,
        shard,
        recipe,
        kept_slots(recipe, request, context.state),
        seed=training_seed(experiment, request),
        server_round=request.server_round,
        client=local.client,
        phase_round=request.phase_round or request.server_round,
        phase_rounds=request.phase_rounds or experiment.num_rounds,
        optimizers=here.optimizers,
        extra=protocol.as_tensors(request.extra, shard.images.device),
        previous=here.previous,
    )
    # Refuse a diverged network before the client keeps or sends any of it.
    refuse_divergence(weights, state)
    save_state(recipe, weights, state, context.state, request)
    if report.is_inactive:
        return protocol.metrics_reply(
            message, _own_metrics(experiment, report, local.client, shard, None)
        )
    # Measure the update as it was trained, before clipping and noise change it.
    trained = {name: protocol.as_numpy(tensor) for name, tensor in weights.sent_back.items()}
    is_measured = may_leave(experiment, protocol.UPDATE_NORM)
    norm = update_norm(request.arrays, trained) if is_measured else None
    sent = clip_and_add_noise(
        experiment,
        request.arrays,
        trained,
        server_round=request.server_round,
        client=local.client,
        secret=needs_secret_noise(experiment, context.node_config),
    )
    metrics = _own_metrics(experiment, report, local.client, shard, norm)
    return protocol.fit_reply(message, sent, shared_state(recipe, state), metrics)


def training_seed(experiment: ClientSettings, request: protocol.Request) -> int:
    """Return the seed of a client's training; a client that is asked again in a round draws other batches and views.

    Args:
        experiment: The experiment as it stands in the phase.
        request: The request to train.
    """
    if not request.repeat:
        return experiment.seed
    return rng.derive_seed(experiment.seed, "repeat", round=request.repeat)


def _own_metrics(
    experiment: ClientSettings, report: FitReport, client: int, shard: Shard, norm: float | None
) -> protocol.Metrics:
    """Return the metrics of a client's round that may leave the client; `norm` is the length of its update."""
    metrics = protocol.fit_metrics(
        report,
        client=client,
        num_labeled=len(shard.labeled),
        num_examples=len(shard),
        update_norm=norm,
    )
    return metrics_that_may_leave(experiment, metrics)


@app.evaluate(mods=MODS)
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received weights on this client's held-out images: those dealt to it, or its own private ones.

    A client without held-out images answers with zero examples.
    """
    return _answered(_evaluate, message, context)


def _evaluate(
    message: Message, context: Context, request: protocol.Request, here: Resident
) -> Message:
    device = device_of(context)
    set_threads(here.experiment)
    local = local_data(here.experiment, request.terms, context)
    here.weights.load(request.arrays, context.state)
    images, labels = local.held_out()
    classifier = here.recipe.method.classifier(here.network)
    result = evaluate_network(classifier, images.to(device), labels.to(device), local.spec)
    return protocol.metrics_reply(
        message,
        {
            protocol.CLIENT: local.client,
            protocol.NUM_EXAMPLES: result.num_examples,
            "num-correct": result.num_correct,
            "accuracy": result.num_correct / max(1, result.num_examples),
            "loss": result.loss_sum / max(1, result.num_examples),
        },
    )


@app.query(mods=MODS)
def query(message: Message, context: Context) -> Message:
    """Say which client this is and how many images and labels it holds; nothing else leaves the client."""
    request = protocol.read_request(message)
    experiment = ClientSettings.from_json(request.experiment)
    refuse_below_floor(experiment, context)
    local = local_data(experiment, request.terms, context)
    return protocol.metrics_reply(
        message,
        {
            protocol.CLIENT: local.client,
            protocol.NUM_EXAMPLES: local.num_examples,
            protocol.NUM_LABELED: local.num_labeled,
        },
    )


def devices_of(context: Context) -> list[str]:
    """Return the devices that the engine gave this node; without any, a GPU if the machine has one, else the CPU."""
    given = context.node_config.get(protocol.DEVICE)
    return str(given or ("cuda" if torch.cuda.is_available() else "cpu")).split(",")


def device_of(context: Context) -> str:
    """Return the first device of this node."""
    return devices_of(context)[0]


def set_threads(experiment: ClientSettings) -> None:
    """Let torch use as many threads as the experiment asks for."""
    if torch.get_num_threads() != experiment.train.threads:
        torch.set_num_threads(experiment.train.threads)
