"""The common part of server optimizers: an optimizer at the server moves the global parameters, not the plain mean.

The cohort's mean minus the old parameters is the update that clients suggest. An optimizer turns this update into the
direction of its step, and keeps what it needs in the next round, such as a momentum.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 1 (FedOpt), whose clients run
plain SGD. Here they run what the experiment says.
"""

from abc import abstractmethod
from typing import Annotated, ClassVar

import numpy as np
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field

from fedssl.core.arrays import NamedArrays
from fedssl.exchange.census import Cohorts
from fedssl.exchange.sums import Double, as_type
from fedssl.strategies.fedavg import AveragingStrategy, FedAvg

State = dict[str, Double]
"""The arrays, by name, that an optimizer keeps for one parameter between rounds; each has the parameter's shape."""

ServerRate = Annotated[
    float, Field(gt=0, description="learning rate of the server's step, a factor of its direction")
]
"""The type of the setting ``server_lr``."""

Decay = Annotated[float, Field(ge=0, lt=1)]
"""The type of a setting that says which share of a running sum or mean stays from one round to the next."""


class ServerOptimizer(FedAvg):
    """Move the global parameters by an optimizer's step along the mean update of the sampled clients.

    Example:
        An optimizer defines two pure functions, `fresh_state` and `direction`. This one keeps nothing, and goes by the
        sign of each update.

        >>> from fedssl.exchange.census import Census
        >>> class Signs(ServerOptimizer):
        ...     def fresh_state(self, shape):
        ...         return {}
        ...     def direction(self, update, state):
        ...         return np.sign(update), state
        >>> strategy = Signs(server_lr=0.5).build(Cohorts(Census.unknown(10), sample=2, seed=0))
        >>> last, sums = {"w": np.array([1.0, 1.0])}, {"w": np.array([8.0, -8.0])}
        >>> strategy.conclude(1, last, sums, total_weight=2.0)["w"].tolist()  # the cohort's mean is [4, -4]
        [1.5, 0.5]
    """

    is_abstract: ClassVar[bool] = True
    group: ClassVar[str] = "server optimizers"

    server_lr: ServerRate = 1.0

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the strategy that runs a phase.

        Raises:
            InputError: All weights of the mean would be 0.
        """
        self.check_weight(cohorts)
        return OptimizingStrategy(self, cohorts)

    @abstractmethod
    def fresh_state(self, shape: tuple[int, ...]) -> State:
        """Return what the optimizer keeps for a parameter of this shape before its first step."""

    @abstractmethod
    def direction(self, update: Double, state: State) -> tuple[Double, State]:
        """Return the direction of one parameter's step and what the optimizer keeps; a pure function.

        Args:
            update: The clients' mean minus the old parameter, in the parameter's shape.
            state: What the optimizer has kept for this parameter.
        """


class OptimizingStrategy(AveragingStrategy):
    """Average a cohort's replies, and let an optimizer take a step from the old parameters along the mean update.

    Everything is computed and kept in double precision, and only the new parameters are rounded. A round in which no
    reply counts is no step. A parameter whose name or shape is new, such as in a phase with another network, begins
    with fresh state. State of parameters that the global model no longer has is dropped.

    Args:
        optimizer: The section ``[strategy]``.
        cohorts: The clients of the run, and how many of them take part in a round.
    """

    def __init__(self, optimizer: ServerOptimizer, cohorts: Cohorts) -> None:
        super().__init__(optimizer, cohorts)
        self._optimizer = optimizer
        self.states: dict[str, State] = {}

    def after(self, server_round: int, arrays: NamedArrays, aggregate: NamedArrays) -> NamedArrays:
        """Return the parameters after the optimizer's step; buffers never come here."""
        moved, states = {}, {}
        for name, old in arrays.items():
            update = np.subtract(aggregate[name], old, dtype=np.float64)
            state = self._state_of(name, old.shape)
            direction, states[name] = self._optimizer.direction(update, state)
            moved[name] = as_type(old + self._optimizer.server_lr * direction, old)
        self.states = states
        return moved

    def _state_of(self, name: str, shape: tuple[int, ...]) -> State:
        state = self.states.get(name)
        if state is None or any(array.shape != shape for array in state.values()):
            return self._optimizer.fresh_state(shape)
        return state
