"""SCAFFOLD: control variates take the drift of each client out of its steps.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, arXiv:1910.06378.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field
from torch import Tensor

from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import Merge, Slot, Tensors
from fedssl.exchange.census import Cohorts
from fedssl.exchange.sums import as_type
from fedssl.methods.base import Learner
from fedssl.strategies.fedavg import AveragingStrategy, FedAvg, Weight
from fedssl.training.correction import Correction, Parameters

OWN = "scaffold.own"
"""Slot of c_i, the mean gradient of the client's last round; it stays at the client."""

SERVER = "scaffold.server"
"""Slot of c, the mean of all clients' c_i; the server merges it."""


class Scaffold(FedAvg):
    """Replace each client's gradient g by g - c_i + c, and keep c as the mean of the c_i of all K clients.

    The new c_i is the mean of the gradients that the client has seen in the round, before their correction. For plain
    gradient descent this is option II of the paper, c_i - c + (x - y_i) / (K eta). That formula is wrong as soon as the
    optimizer has momentum, adapts its rates, decays weights or follows a schedule: with momentum .9 and a constant
    gradient of 1, ten steps give 4.14. The mean gradient is right with any optimizer. Clipping acts after the correction.

    Requests and replies carry c beside the weights, so they are twice as large. Clients keep c_i, which grows old while
    a client is not sampled. With pseudo-labels, the loss itself changes from round to round, so an old c_i is also the
    gradient of an old loss.
    """

    group: ClassVar[str] = "drift correction"

    weight: Weight = Field(
        "uniform",
        description="a client's weight in the mean of the models; the paper's is uniform. The mean of the control "
        "variates is uniform always",
    )
    server_lr: float = Field(
        1.0, gt=0, description="eta_g, step of the server towards the mean of the clients' models"
    )

    def correction(self) -> Correction:
        """Return the control variates."""
        return ControlVariates()

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the strategy that runs a phase; it raises as `FedAvg.build` does."""
        self.check_weight(cohorts)
        return _Scaffold(self, cohorts)


class _Scaffold(AveragingStrategy):
    settings: Scaffold

    def after(self, server_round: int, arrays: NamedArrays, aggregate: NamedArrays) -> NamedArrays:
        """Return x + eta_g (mean y_i - x); the mean itself if eta_g is 1."""
        lr = self.settings.server_lr
        if lr == 1:
            return aggregate
        return {
            name: as_type(x + lr * np.subtract(aggregate[name], x, dtype=np.float64), x)
            for name, x in arrays.items()
        }


@dataclass
class _Gradients:
    """The gradients of a round so far: their sum and their number, by parameter."""

    sums: Tensors = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, gradient: Tensor) -> None:
        self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient.clone()
        self.counts[name] += 1

    def means(self) -> Tensors:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@dataclass(frozen=True)
class ControlVariates(Correction):
    """The client half: it corrects gradients, and renews c_i at the end of a round."""

    is_elementwise: ClassVar[bool] = True

    def slots(self) -> tuple[Slot, ...]:
        """Keep c_i at the client; let the server move c by the mean of the changes over all K clients."""
        return (Slot(OWN, "client"), Slot(SERVER, "server", Merge("uniform", over="population")))

    def init_slot(self, name: str, parameters: Parameters) -> Tensors:
        """Start every control variate at 0."""
        return {key: torch.zeros_like(parameter) for key, parameter in parameters.items()}

    def begin(self, learner: Learner) -> None:
        """Begin the round without a gradient."""
        learner.scratch[OWN] = _Gradients()

    def correct(self, learner: Learner, parameters: Parameters) -> None:
        """Note each gradient g, and put g - c_i + c in its place.

        Reference: Algorithm 1, line 10.
        """
        own, server = learner.state[OWN], learner.state[SERVER]
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            learner.scratch[OWN].add(name, parameter.grad)
            parameter.grad += server[name] - own[name]

    def end(self, learner: Learner) -> None:
        """Renew c_i, and send c + (new c_i - old c_i), whose mean over all K clients is the new c.

        Reference: Algorithm 1, lines 12, 13 and 17.
        """
        own, server = learner.state[OWN], learner.state[SERVER]
        for name, mean in learner.scratch[OWN].means().items():
            server[name] = server[name] + mean - own[name]
            own[name] = mean
