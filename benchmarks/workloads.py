"""The measured federations, as tables of an experiment file, and as plain tensors for the other frameworks.

A quarter of the images is labeled, and so is a quarter of each batch. A client's round shows about as many images as
the client holds.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.local_step import (
    LR,
    MOMENTUM,
    NOISE,
    THRESHOLD,
    WEIGHT_DECAY,
    ClientData,
    Normalize,
    Work,
    normalizer,
)
from fedssl.clients.local_data import simulated_federation
from fedssl.data.federation import Federation
from fedssl.data.shard import as_float
from fedssl.experiment.experiment import Experiment
from fedssl.metrics.accuracy import evaluate
from fedssl.training.network import build_network

Table = dict[str, Any]

MODEL: Table = {"kind": "cnn", "widths": [16, 32], "hidden": 64, "norm": "none"}
NEVER = 1_000_000
"""The number of rounds between evaluations; it is so large that only the last round is evaluated."""


@dataclass(frozen=True)
class Workload:
    """A federation and the work of a round.

    Args:
        title: Title for the output.
        source: ``digits``, ``fashion_mnist`` or ``tiled``; ``tiled`` repeats digits under noise, in any number.
        clients, sample: K and m.
        work: Work of a client in a round.
        rounds: Default number of rounds.
        images: Number of training images of ``tiled``.
        seed: Seed of the experiment.
        model: The ``[model]`` section, as pairs of setting and value.
    """

    title: str
    source: str
    clients: int
    sample: int
    work: Work
    rounds: int
    images: int = 0
    seed: int = 0
    model: tuple[tuple[str, Any], ...] = tuple(MODEL.items())

    def table(self, folder: Path, fashion_root: Path) -> Table:
        """Return the experiment without its rounds and engine.

        Args:
            folder: Folder for the images that the benchmark makes.
            fashion_root: Folder that holds ``FashionMNIST/raw``.
        """
        work = self.work
        return {
            "name": "benchmark",
            "seed": self.seed,
            "data": self._data(folder, fashion_root),
            "federation": {
                "clients": self.clients,
                "sample": self.sample,
                "partition": "iid",
                "labels": {"kind": "at_clients", "fraction": 0.25},
            },
            "augment": {"weak": "identity", "strong": {"kind": "noise", "std": NOISE}},
            "model": dict(self.model),
            "method": {
                "kind": "fixmatch",
                "threshold": THRESHOLD,
                "unlabeled_ratio": work.unlabeled // work.labeled,
            },
            "train": {
                "local_steps": work.steps,
                "batch_size": work.labeled,
                "lr": LR,
                "momentum": MOMENTUM,
                "nesterov": True,
                "weight_decay": WEIGHT_DECAY,
            },
            "server": {"evaluate_every": NEVER, "checkpoint_every": NEVER},
        }

    def _data(self, folder: Path, fashion_root: Path) -> Table:
        if self.source == "tiled":
            return {"source": f"npz:{tiled_digits(folder, self.images)}"}
        if self.source == "fashion_mnist":
            return {"source": "fashion_mnist", "root": str(fashion_root)}
        return {"source": self.source}


WORKLOADS = {
    "S": Workload("digits", "digits", 100, 10, Work(4, 12, 1), 40),
    "M": Workload("digits", "digits", 1_000, 100, Work(1, 1, 1), 20),
    "L": Workload("Fashion-MNIST", "fashion_mnist", 100, 10, Work(8, 24, 19), 7),
    "XL": Workload("tiled digits", "tiled", 10_000, 1_000, Work(1, 1, 1), 8, images=20_000),
}


def tiled_digits(folder: Path, count: int, num_test: int = 1_000) -> Path:
    """Write `count` 8x8 digits, each under its own noise, unless the file exists; return the file."""
    path = folder / f"tiled-{count}.npz"
    if path.exists():
        return path
    digits = load_digits()
    draws = np.random.default_rng(0)
    rows = np.arange(count + num_test) % len(digits.target)
    noisy = digits.images[rows] * (255 / 16) + draws.normal(0, 16, (len(rows), 8, 8))
    images = noisy.clip(0, 255).astype(np.uint8)
    labels = digits.target[rows]
    np.savez(
        path,
        images=images[:count],
        labels=labels[:count],
        test_images=images[count:],
        test_labels=labels[count:],
    )
    return path


class Plain:
    """An experiment as plain networks, tensors and numbers, for frameworks that know nothing of fedssl.

    All images are in memory as floats before the first round, so no contender waits for data.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self.seed = experiment.seed
        self.num_clients = experiment.federation.clients
        self.sample = experiment.federation.sample
        ratio = experiment.method.views().ratio
        labeled, steps = experiment.train.batch_size, experiment.train.local_steps
        assert steps is not None
        self.work = Work(labeled, labeled * ratio, steps)

    @cached_property
    def federation(self) -> Federation:
        """The same federation that fedssl's clients see."""
        return simulated_federation(self._experiment)

    @cached_property
    def clients(self) -> list[ClientData]:
        """The data of each client."""
        federation = self.federation
        sizes = federation.sizes.tolist()
        rows = np.concatenate([federation.rows(k) for k in range(self.num_clients)])
        images = as_float(torch.from_numpy(federation.data.train.read(rows))).split(sizes)
        labels = torch.from_numpy(federation.given[rows]).split(sizes)
        return [
            ClientData(x, y, (y >= 0).nonzero().squeeze(1))
            for x, y in zip(images, labels, strict=True)
        ]

    @property
    def normalize(self) -> Normalize:
        """The function that normalizes every view."""
        spec = self.federation.data.spec
        return normalizer(spec.mean, spec.std)

    def network(self) -> nn.Module:
        """Return the network with its initial weights."""
        experiment, spec = self._experiment, self.federation.data.spec
        return build_network(experiment.model, experiment.method, spec, self.seed)

    def accuracy(self, weights: dict[str, Tensor]) -> float:
        """Return the test accuracy of a model."""
        network, held_out = self.network(), self.federation.held_out
        network.load_state_dict(weights)
        images, labels = torch.from_numpy(held_out.images), torch.from_numpy(held_out.labels)
        return evaluate(network, images, labels, self.federation.data.spec).accuracy


def draws_of(generator: torch.Generator, visit: int, client: int) -> torch.Generator:
    """Set a generator to a client's stream for its round number `visit`, and return the generator."""
    return generator.manual_seed(visit * 1_000_003 + client)
