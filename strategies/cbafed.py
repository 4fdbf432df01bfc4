"""CBAFed's server: every few rounds, the mean model is mixed with the model of some rounds ago.

Li, Li & Wang, "Class Balanced Adaptive Pseudo Labeling for Federated Semi-Supervised Learning", CVPR 2023.
"""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field

from fedssl.core.arrays import NamedArrays
from fedssl.exchange.census import Cohorts
from fedssl.exchange.sums import as_type
from fedssl.strategies.fedavg import AveragingStrategy, FedAvg, Weight


class CBAFed(FedAvg):
    """Average models by the clients' labels and pseudo-labels, and make a residual connection every few rounds.

    A residual connection mixes the mean of a round with the global model after the last connection. The first one goes
    back to the model with which the strategy began. Between two connections, the strategy is fedavg, and nothing
    travels that fedavg does not send.

    It goes with any method. CBAFed's clients are the method of the same name.

    Deviations: the official code makes its first connection one round later, because it counts rounds from 0. It also
    mixes the statistics of normalizations; here they are those of the round's mean, because no step of a strategy moves
    buffers.
    """

    group: ClassVar[str] = "averaging"

    weight: Weight = Field(
        "confident",
        description="a client's weight n_k in the mean, as in fedavg; confident: labeled images and images whose "
        "pseudo-label was accepted",
    )
    every: int = Field(5, ge=1, description="rounds between two residual connections")
    share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the old model in a residual connection; 0: the strategy is fedavg",
    )

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the strategy that runs a phase.

        Raises:
            InputError: All weights of the mean would be 0.
        """
        self.check_weight(cohorts)
        return ResidualStrategy(self, cohorts)


class ResidualStrategy(AveragingStrategy):
    """Average a cohort's replies, and go back a share of the way to the model of the last connection when it is due.

    A round in which no reply counts makes no connection; the next round that has replies makes it then. A parameter
    that is new in a phase is not mixed before the second connection.

    Args:
        section: The section ``[strategy]``.
        cohorts: The clients of the run, and how many of them take part in a round.
    """

    def __init__(self, section: CBAFed, cohorts: Cohorts) -> None:
        super().__init__(section, cohorts)
        self._section = section
        self.old: NamedArrays = {}
        self.old_round = 0

    def after(self, server_round: int, arrays: NamedArrays, aggregate: NamedArrays) -> NamedArrays:
        """Return share w_old + (1 - share) mean if a connection is due, else the mean; buffers never come here."""
        if not self.old:
            self.old, self.old_round = arrays, server_round - 1
        if server_round - self.old_round < self._section.every:
            return aggregate
        self.old = {name: self._connected(name, mean) for name, mean in aggregate.items()}
        self.old_round = server_round
        return self.old

    def _connected(self, name: str, mean: npt.NDArray[Any]) -> npt.NDArray[Any]:
        old = self.old.get(name)
        if old is None or old.shape != mean.shape:
            return mean
        share = self._section.share
        mixed = np.multiply(old, share, dtype=np.float64)
        return as_type(mixed + np.multiply(mean, 1 - share, dtype=np.float64), mean)
