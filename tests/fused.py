"""Small clients that are trained one by one and fused, for tests of both."""

import torch

from fedssl.augment.policy import Augment
from fedssl.data.shard import ImageSpec, Shard
from fedssl.fusion.fit import fit_together
from fedssl.fusion.fusible import way_to_fuse
from fedssl.methods.functional import snapshot
from fedssl.models.cnn import CNN
from fedssl.training.learn import fill_slots, learn
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe

SPEC = ImageSpec((1, 8, 8), 4, (0.4,), (0.3,), flips=True)
MODEL = CNN(widths=(6, 8), hidden=12, norm="none")
TRAIN = Train(local_steps=3, batch_size=3)
CLIENTS = [3, 9, 1, 4]
WHEN = {"seed": 5, "server_round": 2, "phase_round": 2, "phase_rounds": 4}


def shard(size=9, labeled=4, seed=0, spec=SPEC, dtype=torch.uint8):
    """Return random images; the first ones carry a label."""
    stream = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (size, *spec.shape), generator=stream, dtype=torch.uint8)
    labels = torch.randint(spec.num_classes, (size,), generator=stream)
    seen = torch.where(torch.arange(size) < labeled, labels, -1)
    if dtype != torch.uint8:
        images = images.to(dtype) / 255
    return Shard(images, seen, labels, spec)


def shards(labeled=True, **kwargs):
    """Return four clients of different sizes."""
    sizes = [(9, 4), (5, 1), (14, 9), (3, 3)]
    return [
        shard(size, count if labeled else 0, seed, **kwargs)
        for seed, (size, count) in enumerate(sizes)
    ]


def network_for(method, model=MODEL, spec=SPEC, dtype=torch.float32):
    return build_network(model, method, spec, 0).to(dtype)


def recipe(method, train=TRAIN, augment=None):
    return Recipe(method, train, Augment() if augment is None else augment)


def alone(network, shards, recipe, clients=CLIENTS):
    """Return each client's (weights, report), trained by itself; the network is left as it is."""
    return [
        (weights, report)
        for weights, _, report in alone_with_state(network, shards, recipe, clients)
    ]


def alone_with_state(network, shards, recipe, clients=CLIENTS, kept=None, **when):
    """Return each client's (weights, state, report); `kept` is what each keeps from its last round."""
    start, trained = snapshot(network), []
    for client, own, found in zip(
        clients[: len(shards)], shards, kept or [{}] * len(shards), strict=True
    ):
        report, state = learn(network, own, recipe, found, client=client, **(WHEN | when))
        trained.append((snapshot(network), state, report))
        network.load_state_dict(start)
    return trained


def together(network, shards, recipe, clients=CLIENTS, **when):
    """Return each client's (weights, report), all trained in one step."""
    found = together_with_state(network, shards, recipe, clients, **when)
    return [(weights, report) for weights, _, report in found]


def together_with_state(network, shards, recipe, clients=CLIENTS, kept=None, **when):
    """Return each client's (weights, state, report), all trained in one step."""
    way = way_to_fuse(recipe, network, shards[0].spec)
    if isinstance(way, str):
        raise ValueError(way)
    states = [
        fill_slots(recipe, network, own, found)
        for own, found in zip(shards, kept or [{}] * len(shards), strict=True)
    ]
    fitted = fit_together(
        network, shards, recipe, states, way, clients=clients[: len(shards)], **(WHEN | when)
    )
    return [
        ({name: stack[i] for name, stack in fitted.weights.items()}, fitted.state_of(i), report)
        for i, report in enumerate(fitted.reports)
    ]


def apart(network, first, second):
    """Return how far two trained clients are from each other, as a share of the way they came."""
    start = {k: v for k, v in snapshot(network).items() if v.is_floating_point()}
    way = torch.stack([(first[k] - start[k]).norm() for k in start]).norm()
    return float(torch.stack([(first[k] - second[k]).norm() for k in start]).norm() / way)


def why_not(recipe, network, spec):
    """Return why clients cannot be fused; None if they can."""
    way = way_to_fuse(recipe, network, spec)
    return way if isinstance(way, str) else None
