"""A federation of two clients whose losses are known: f1 = (w - 1)^2 / 2 and f2 = 3 (w + 1)^2 / 2.

The best common w is -.5, where the clients' gradients are -1.5 and 1.5. Clients train by the product's own loop.
`Federation` runs a strategy alone; `on_digits` is an experiment for the product's own server.
"""

import numpy as np
import torch
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.clients.client_app import app
from fedssl.data.shard import ImageSpec, Shard
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange.census import Census, Cohorts
from fedssl.exchange.sums import WeightedSum
from fedssl.methods.base import Loss, Method, Views
from fedssl.training.learn import learn
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe
from tests.helpers import small_experiment

SPEC = ImageSpec((1, 1, 1), 2, (0.0,), (1.0,), flips=False)
EXACT = {"local_steps": 25, "lr": 0.3}
"""Enough steps to solve a client's problem to 1e-6: with a quadratic term of weight 1, each step leaves .4 of the way."""

PLAIN = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "batch_size": 1}


class Point(nn.Module):
    """A network of one weight and one running statistic, which no correction may touch."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.num_classes = num_classes
        self.w = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        return self.w * torch.ones(len(images), self.num_classes)


class Quadratic(Method):
    """Pull w to 1 with weight 1 at clients of class 0, and to -1 with weight 3 at clients of class 1."""

    def views(self):
        return Views(("plain",))

    def loss(self, network, batch, state, progress):
        network.seen += 1
        is_second = batch.labels.float().mean()
        pull, target = 1 + 2 * is_second, 1 - 2 * is_second
        return Loss(pull / 2 * (network.w - target) ** 2)


class Slope(Quadratic):
    """A loss whose gradient is 1 everywhere."""

    def loss(self, network, batch, state, progress):
        return Loss(network.w + 0 * batch.labels.sum())


def shard_of(client):
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    label = torch.tensor([client])
    return Shard(zero, label, label, SPEC)


class Federation:
    """Two clients and a server, which run a strategy as a run does.

    Args:
        section: The ``[strategy]`` section.
        method: What clients minimize.
        clients: The clients of every round; all of them by default.
        train: Settings of the ``[train]`` section.
    """

    def __init__(self, section, method=None, clients=(0, 1), **train):
        self.section = section
        self.recipe = Recipe(
            method or Quadratic(), Train(**{**PLAIN, **train}), Augment(), section.correction()
        )
        self.strategy = section.build(Cohorts(Census.unknown(2), 2, 0))
        self.arrays = {"w": np.zeros((), np.float32), "seen": np.zeros((), np.float32)}
        self.clients = clients
        self.state = {}
        self.kept = {0: {}, 1: {}}
        self.trained = {}
        self.round = 0

    def run(self, rounds):
        for _ in range(rounds):
            self._run_round()
        return float(self.arrays["w"])

    def _run_round(self):
        self.round += 1
        models = WeightedSum(len(self.clients))
        sent = {}
        for place, client in enumerate(self.clients):
            network = Point()
            network.load_state_dict({k: torch.tensor(v) for k, v in self.arrays.items()})
            _, state = learn(
                network, shard_of(client), self.recipe, {**self.kept[client], **self.state},
                seed=0, server_round=self.round, client=client, phase_round=self.round, phase_rounds=100,
            )  # fmt: skip
            as_arrays = {s: {k: t.numpy().copy() for k, t in ts.items()} for s, ts in state.items()}
            for slot in self.recipe.slots():
                if slot.scope == "server":
                    sent.setdefault(slot.name, []).append(as_arrays[slot.name])
                else:
                    self.kept[client][slot.name] = as_arrays[slot.name]
            trained = {k: t.detach().numpy().copy() for k, t in network.state_dict().items()}
            self.trained[client] = float(trained["w"])
            models.add(place, trained, 1.0)
        self._merge(sent)
        self.arrays = self.strategy.conclude(self.round, self.arrays, *models.result(), {"seen"})

    def _merge(self, sent):
        """Merge uniformly over the population of two, as the slots of corrections ask for."""
        for slot, replies in sent.items():
            old = self.state.get(slot, {k: np.zeros_like(a) for k, a in replies[0].items()})
            self.state[slot] = {
                k: np.asarray(a + sum(r[k] - a for r in replies) / 2) for k, a in old.items()
            }


def on_digits(strategy, **sections):
    """Return an experiment whose two clients have these losses, whatever their images are."""
    whole = {"rounds": 60} if "phases" not in sections else {"rounds": None}
    return small_experiment(
        **{
            **whole,
            "federation": {
                "clients": 2,
                "sample": 2,
                "partition": {"kind": "classes", "classes": 5},
                "labels": {"per_class": 4},
            },
            "method": "tests.plugins.quadratic",
            "train": {**PLAIN, "local_steps": 10, "lr": 0.3},
            "strategy": strategy,
            "server": {"evaluate_every": 1000},
            **sections,
        }
    )


def two_clients():
    """Return a grid of this process for such an experiment."""
    return SerialGrid(Apps(app), 2)
