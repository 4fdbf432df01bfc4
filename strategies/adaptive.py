"""The common part of FedAdagrad, FedAdam and FedYogi, which differ in their second moment alone.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.
"""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from pydantic import Field

from fedssl.exchange.sums import Double
from fedssl.strategies.server_optimizer import Decay, ServerOptimizer, ServerRate, State

MOMENTUM = "momentum"
SECOND_MOMENT = "second_moment"


class AdaptiveOptimizer(ServerOptimizer):
    """Divide each coordinate's step by the root of a second moment of its updates, plus tau.

    The moments are not corrected for their beginning, unlike in Adam: the second moment begins with tau^2 in every
    coordinate. The paper tunes the server's learning rate and has no default. Ours is the lower median of the best
    values that the authors list for their six tasks, which spread over more than a factor of 100: tune it.
    """

    is_abstract: ClassVar[bool] = True

    server_lr: ServerRate = 0.01
    beta_1: Decay = Field(0.9, description="share of the momentum that stays in each round")
    tau: float = Field(
        1e-3,
        gt=0,
        description="added to the root of the second moment, which begins with tau^2; the smaller, the more adaptive",
    )

    def fresh_state(self, shape: tuple[int, ...]) -> State:
        """Return m = 0 and v = tau^2."""
        return {MOMENTUM: np.zeros(shape), SECOND_MOMENT: np.full(shape, self.tau**2)}

    def direction(self, update: Double, state: State) -> tuple[Double, State]:
        """Return m / (sqrt(v) + tau) and the new moments, with m <- beta_1 m + (1 - beta_1) update."""
        momentum = self.beta_1 * state[MOMENTUM] + (1 - self.beta_1) * update
        second_moment = self.second_moment(state[SECOND_MOMENT], np.square(update))
        kept = {MOMENTUM: momentum, SECOND_MOMENT: second_moment}
        return momentum / (np.sqrt(second_moment) + self.tau), kept

    @abstractmethod
    def second_moment(self, last: Double, squares: Double) -> Double:
        """Return the new second moment; a pure function.

        Args:
            last: The second moment so far.
            squares: The squares of the update's coordinates, in the same shape.
        """
