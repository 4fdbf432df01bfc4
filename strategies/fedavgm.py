"""FedAvgM: federated averaging with momentum at the server.

Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
arXiv:1909.06335. SemiFL (Diao et al., NeurIPS 2022, arXiv:2106.01432) has the same step with ``momentum = 0.5`` and
``weight = "uniform"``.
"""

import numpy as np
from pydantic import Field

from fedssl.exchange.sums import Double
from fedssl.strategies.server_optimizer import Decay, ServerOptimizer, State

VELOCITY = "velocity"


class FedAvgM(ServerOptimizer):
    """Move the global parameters by a running sum of the mean updates: SGD with momentum at the server.

    Updates that stay the same add up to steps that are server_lr / (1 - momentum) times as long as an update: ten times
    with the default settings. Without momentum and with a server_lr of 1, this is fedavg, but for rounding.
    """

    momentum: Decay = Field(0.9, description="share of the velocity that stays in each round")

    def fresh_state(self, shape: tuple[int, ...]) -> State:
        """Return a velocity of 0."""
        return {VELOCITY: np.zeros(shape)}

    def direction(self, update: Double, state: State) -> tuple[Double, State]:
        """Return the new velocity v <- momentum v + update, which is kept too."""
        velocity = self.momentum * state[VELOCITY] + update
        return velocity, {VELOCITY: velocity}
