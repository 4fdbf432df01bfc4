"""FedDyn: a dynamic regularizer moves each client's optimum to the optimum of the federation.

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, arXiv:2111.04263.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field
from torch import Tensor

from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import Slot, Tensors
from fedssl.exchange.census import Cohorts
from fedssl.exchange.reduction import uniformly
from fedssl.exchange.sums import Sums, as_type
from fedssl.methods.base import Learner
from fedssl.strategies.base import Strategy
from fedssl.strategies.by_sums import SumStrategy
from fedssl.training.correction import Correction, Parameters, squared_distance

GRADIENT = "feddyn.gradient"
"""Slot of h_i, the client's estimate of its gradient at its optimum; it stays at the client."""


class FedDyn(Strategy):
    """Add -<h_i, w> + alpha/2 ||w - w_global||^2 to every client's loss, and correct the mean by the clients' drift.

    The term is right for any optimizer, as it is a part of the loss. Weight decay stays a term of its own: the original
    code hides alpha in it. Only weights travel. Clients keep h_i, and the server keeps H, the mean of h_i over all K
    clients. Both begin at 0 in every phase. With pseudo-labels, the loss changes from round to round, so an old
    h_i is the gradient of an old loss.

    The correction assumes that clients reach the minimum of their losses. A few steps do not reach it if alpha is small,
    and then the server's correction H / alpha overshoots: with FixMatch on digits, ten steps of rate .02 and skewed
    clients, alpha = .1 lost 16 points on FedAvg, and alpha = 1 gained (docs/reproduce.md).
    """

    group: ClassVar[str] = "drift correction"

    alpha: float = Field(
        0.1,
        gt=0,
        description="weight of the dynamic regularizer; small values make large corrections",
    )

    def correction(self) -> Correction:
        """Return the dynamic regularizer."""
        return DynamicRegularizer(self.alpha)

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the strategy that runs a phase."""
        return _FedDyn(self, cohorts)


class _FedDyn(SumStrategy):
    def __init__(self, settings: FedDyn, cohorts: Cohorts) -> None:
        super().__init__(cohorts, uniformly)
        self._settings = settings
        self._drift: dict[str, np.ndarray] = {}
        self._num_replies = 0.0

    def combine(self, sums: Sums, total_weight: float, arrays: NamedArrays) -> NamedArrays:
        """Return the plain mean of the clients' models, and note how many there are."""
        self._num_replies = total_weight
        return super().combine(sums, total_weight, arrays)

    def after(self, server_round: int, arrays: NamedArrays, aggregate: NamedArrays) -> NamedArrays:
        """Return mean y_i - H / alpha, after H has moved by -alpha / K sum (y_i - w).

        Reference: Algorithm 1, the server's two lines.
        """
        alpha, share = self._settings.alpha, self._num_replies / len(self.cohorts.census)
        moved, drift = {}, {}
        for name, mean in aggregate.items():
            step = np.subtract(mean, arrays[name], dtype=np.float64)
            drift[name] = self._drift.get(name, 0.0) - alpha * share * step
            moved[name] = as_type(mean - drift[name] / alpha, mean)
        self._drift = drift
        return moved


@dataclass(frozen=True)
class DynamicRegularizer(Correction):
    """The client half: a linear and a quadratic term.

    Args:
        alpha: Weight of the quadratic term.
    """

    is_elementwise: ClassVar[bool] = True

    alpha: float

    def slots(self) -> tuple[Slot, ...]:
        """Keep h_i at the client."""
        return (Slot(GRADIENT, "client"),)

    def init_slot(self, name: str, parameters: Parameters) -> Tensors:
        """Start h_i at 0."""
        return {key: torch.zeros_like(parameter) for key, parameter in parameters.items()}

    def begin(self, learner: Learner) -> None:
        """Copy the received weights before the first step."""
        _ = learner.received

    def term(self, learner: Learner, parameters: Parameters) -> Tensor | None:
        """Return -<h_i, w> + alpha/2 ||w - w_global||^2.

        Reference: equation 1.
        """
        gradient = learner.state[GRADIENT]
        linear = [(gradient[name] * parameter).sum() for name, parameter in parameters.items()]
        distance = squared_distance(parameters, learner.received)
        return self.alpha / 2 * distance - torch.stack(linear).sum()

    def end(self, learner: Learner) -> None:
        """Move h_i by -alpha (w - w_global).

        Reference: Algorithm 1, the line after the client's optimization.
        """
        gradient, weights = learner.state[GRADIENT], dict(learner.network.named_parameters())
        for name, old in gradient.items():
            step = weights[name].detach() - learner.received[name]
            gradient[name] = old - self.alpha * step
