"""Small clients that are trained one by one and fused, for tests of both."""

import torch

from fedssl.augment.policy import Augment
from fedssl.data.shard import ImageSpec, Shard
from fedssl.fusion.fit import fit_together
from fedssl.methods.functional import snapshot
from fedssl.models.cnn import CNN
from fedssl.training.loop import fit
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
    start, trained = snapshot(network), []
    for client, own in zip(clients, shards, strict=True):
        report = fit(network, own, recipe, {}, client=client, **WHEN)
        trained.append((snapshot(network), report))
        network.load_state_dict(start)
    return trained


def together(network, shards, recipe, clients=CLIENTS, **when):
    """Return each client's (weights, report), all trained in one step."""
    fitted = fit_together(network, shards, recipe, clients=clients, **(WHEN | when))
    return [
        ({name: stack[i] for name, stack in fitted.weights.items()}, report)
        for i, report in enumerate(fitted.reports)
    ]


def apart(network, first, second):
    """Return how far two trained clients are from each other, as a share of the way they came."""
    start = snapshot(network)
    way = torch.stack([(first[k] - start[k]).norm() for k in start]).norm()
    return float(torch.stack([(first[k] - second[k]).norm() for k in start]).norm() / way)
