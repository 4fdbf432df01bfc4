"""The Flower ClientApp: train, evaluate, query. The same in simulation and in containers."""

import functools
from dataclasses import dataclass

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from clients.local_data import local_data
from clients.state import (
    load_state,
    load_weights,
    private_weights,
    refuse_divergence,
    save_state,
    shared_state,
    shared_weights,
)
from fedssl import protocol
from fedssl.config import Experiment
from fedssl.data.shard import ImageSpec
from fedssl.methods.base import Method
from fedssl.metrics.accuracy import evaluate as evaluate_network
from fedssl.metrics.pseudo_labels import pseudo_label_coverage
from fedssl.models.base import Model
from fedssl.networks import build_network
from fedssl.slots import Tensors
from fedssl.training import fit

app = ClientApp()


@app.train(mods=[protocol.reply_or_explain])
def train(message: Message, context: Context) -> Message:
    """Train the received weights on the local shard for one round and send them back."""
    request = protocol.read_request(message)
    experiment = Experiment.from_json(request.experiment)
    local = local_data(experiment, context)
    device = _device(experiment, context)
    shard = local.federation.shard(local.client).to(device)
    resident = _resident(experiment, shard.spec, device)
    network, recipe = resident.network, experiment.recipe
    load_weights(recipe.method, network, request.arrays, resident.private, context.state)
    state = load_state(recipe, network, shard, request.state, context.state, request.phase)
    report = fit(
        network,
        shard,
        recipe,
        state,
        seed=experiment.seed,
        server_round=request.server_round,
        client=local.client,
        phase_round=request.phase_round or request.server_round,
        phase_rounds=request.phase_rounds or experiment.num_rounds,
    )
    refuse_divergence(network, state)
    save_state(recipe, network, state, context.state, request.phase)
    labeled = len(shard.labeled)
    coverage = pseudo_label_coverage(report.considered, report.accepted)
    hidden = len(shard) - labeled
    return protocol.fit_reply(
        message,
        shared_weights(recipe.method, network),
        shared_state(recipe, state),
        report,
        client=local.client,
        num_examples=len(shard),
        num_labeled=labeled,
        num_confident=labeled + (coverage * hidden if report.considered else 0.0),
    )


@app.evaluate(mods=[protocol.reply_or_explain])
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received weights on the held-out images dealt to this client."""
    request = protocol.read_request(message)
    experiment = Experiment.from_json(request.experiment)
    local = local_data(experiment, context)
    device = _device(experiment, context)
    spec = local.federation.data.spec
    resident = _resident(experiment, spec, device)
    network, method = resident.network, experiment.method
    load_weights(method, network, request.arrays, resident.private, context.state)
    images, labels = local.federation.held_out_at(local.client)
    classifier = method.classifier(network)
    result = evaluate_network(classifier, images.to(device), labels.to(device), spec)
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


@app.query(mods=[protocol.reply_or_explain])
def query(message: Message, context: Context) -> Message:
    """Say which client this is and how many images and labels it holds; nothing else leaves it."""
    experiment = Experiment.from_json(protocol.read_request(message).experiment)
    local = local_data(experiment, context)
    return protocol.metrics_reply(
        message,
        {
            protocol.CLIENT: local.client,
            protocol.NUM_EXAMPLES: int(local.federation.sizes[local.client]),
            protocol.NUM_LABELED: int(local.federation.labeled_sizes[local.client]),
        },
    )


def _device(experiment: Experiment, context: Context) -> torch.device:
    """Return the device the engine gave this node, and set the threads the experiment asks for."""
    if torch.get_num_threads() != experiment.train.threads:
        torch.set_num_threads(experiment.train.threads)
    given = context.node_config.get(protocol.DEVICE)
    return torch.device(str(given) if given else "cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class _Resident:
    """A network that stays in this process, and the private weights that a client starts with."""

    network: nn.Module
    private: Tensors


def _resident(experiment: Experiment, spec: ImageSpec, device: torch.device) -> _Resident:
    """Return this process's one network of the kind; callers overwrite all its weights."""
    return _build(experiment.model, experiment.method, spec, experiment.seed, device)


@functools.lru_cache(maxsize=2)
def _build(
    model: Model, method: Method, spec: ImageSpec, seed: int, device: torch.device
) -> _Resident:
    network = build_network(model, method, spec, seed, device)
    return _Resident(network, private_weights(method, network))
