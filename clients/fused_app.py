"""Training requests of several small clients answered in one go, with the replies that each alone would give."""

import logging
import traceback
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from flwr.app import Context, Message

from clients.client_app import app, device_of, set_threads
from clients.local_data import local_data, simulated_federation
from clients.resident import Resident, resident
from clients.state import are_finite, save_state
from fedssl import protocol
from fedssl.config import Experiment
from fedssl.data.shard import Shard
from fedssl.fusion import GROUP_SIZE, fit_together, fusion_key, groups, why_not, worth_fusing
from fedssl.slots import Tensors
from fedssl.training import FitReport

log = logging.getLogger("fedssl.fusion")


@dataclass(frozen=True)
class _Ready:
    """A client whose request can be answered: where it stands among the messages, and what it holds."""

    place: int
    client: int
    shard: Shard


@dataclass(frozen=True)
class _Group:
    """What was trained together, and by what."""

    here: Resident
    phase: int
    ready: list[_Ready]
    trained: list[tuple[Tensors, FitReport]]


def why_apart(experiment: Experiment, device: str = "cpu") -> str | None:
    """Return None if this experiment's clients can be trained together, else one sentence that says why not."""
    spec = simulated_federation(experiment).data.spec
    here = resident(experiment.to_json(), device)
    return why_not(here.recipe, here.network, spec)


def fusion_keys(experiment: Experiment, clients: Iterable[int]) -> list[Hashable]:
    """Return what each client must have in common with those it is trained together with; no image is read."""
    federation, recipe = simulated_federation(experiment), experiment.recipe
    sizes, labeled = federation.sizes, federation.labeled_sizes
    return [fusion_key(recipe, int(labeled[client]), int(sizes[client])) for client in clients]


def group_size(
    experiment: Experiment,
    fuse: int | Literal["off", "auto", "on"],
    clients: Sequence[int],
    largest: int = GROUP_SIZE,
    device: str = "cpu",
) -> int:
    """Return how many clients train together at most; 0 for one by one.

    Args:
        experiment: As it stands in the phase.
        fuse: What ``engine.fuse`` says; ``"auto"`` measures, so whoever asks must keep the answer for all of a run.
        clients: A cohort; what is measured are clients of its longest group.
        largest: Answer for ``"on"``, and the most for ``"auto"``.
        device: Where they train.
    """
    if fuse == "off" or why_apart(experiment, device) is not None:
        return 0
    if fuse != "auto":
        return largest if fuse == "on" else fuse
    cut = groups(fusion_keys(experiment, clients), len(clients))
    federation = simulated_federation(experiment)
    longest = [clients[place] for place in max(cut, key=len)[:largest]]
    shards = [federation.shard(client).to(torch.device(device)) for client in longest]
    here = resident(experiment.to_json(), device)
    set_threads(experiment)
    return worth_fusing(here.network, shards, here.recipe)


def train_together(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """Return the replies to training requests that share one content, in their order.

    They are those of ``[app(m, c) for m, c in zip(messages, contexts)]`` but for rounding. A client that raises or
    diverges gets an error reply of its own and harms nobody else. Where the clients cannot be trained together, each
    is trained alone.

    Args:
        messages: To clients of one of `fusion_keys`; that they share one content is looked at.
        contexts: Of the same clients; written to, as the app does.
    """
    replies: dict[int, Message] = {}
    try:
        group = _train(messages, contexts, replies)
    except Exception as error:  # whoever is at fault says so when it is trained alone
        log.warning("clients are trained one by one: %s", error)
        group = None
    if group is None:
        return [app(message, ctx) for message, ctx in zip(messages, contexts, strict=True)]
    finite = are_finite([weights for weights, _ in group.trained])
    for own, (weights, report), is_finite in zip(group.ready, group.trained, finite, strict=True):
        message, context = messages[own.place], contexts[own.place]
        if is_finite:
            if context.state:  # of an earlier phase: whoever is fused keeps nothing
                save_state(group.here.recipe, group.here.weights, {}, context.state, group.phase)
            replies[own.place] = _reply(message, own, weights, report)
        else:
            reason = "FloatingPointError: training diverged: weights are not finite; lower train.lr"
            replies[own.place] = protocol.error_reply(message, reason)
    return [replies[place] for place in range(len(messages))]


def _train(
    messages: Sequence[Message], contexts: Sequence[Context], replies: dict[int, Message]
) -> _Group:
    """Train all clients that can be prepared; who cannot gets an error reply."""
    if any(message.content is not messages[0].content for message in messages):
        raise ValueError("their requests do not share one content")
    request = protocol.read_request(messages[0])
    here = resident(request.experiment, device_of(contexts[0]))
    experiment = here.experiment
    set_threads(experiment)
    here.weights.load(request.arrays, contexts[0].state)  # fused clients have none of their own
    ready = _prepare(experiment, messages, contexts, replies)
    trained: list[tuple[Tensors, FitReport]] = []
    if ready:
        trained = fit_together(
            here.network,
            [own.shard for own in ready],
            here.recipe,
            seed=experiment.seed,
            server_round=request.server_round,
            clients=[own.client for own in ready],
            phase_round=request.phase_round or request.server_round,
            phase_rounds=request.phase_rounds or experiment.num_rounds,
        )
    return _Group(here, request.phase, ready, trained)


def _prepare(
    experiment: Experiment,
    messages: Sequence[Message],
    contexts: Sequence[Context],
    replies: dict[int, Message],
) -> list[_Ready]:
    """Read every client's shard; who cannot gets an error reply."""
    ready = []
    for place, (message, context) in enumerate(zip(messages, contexts, strict=True)):
        try:
            local = local_data(experiment, context)
            shard = local.federation.shard(local.client).to(torch.device(device_of(context)))
            ready.append(_Ready(place, local.client, shard))
        except Exception:
            replies[place] = protocol.error_reply(message, traceback.format_exc())
    return ready


def _reply(message: Message, own: _Ready, weights: Tensors, report: FitReport) -> Message:
    labeled, examples = len(own.shard.labeled), len(own.shard)
    return protocol.fit_reply(
        message,
        weights,
        {},
        report,
        client=own.client,
        num_examples=examples,
        num_labeled=labeled,
        num_confident=report.num_confident(labeled, examples),
    )
