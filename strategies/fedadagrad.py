"""FedAdagrad: Adagrad at the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.
"""

from pydantic import Field

from fedssl.exchange.sums import Double
from fedssl.strategies.adaptive import AdaptiveOptimizer
from fedssl.strategies.server_optimizer import Decay, ServerRate


class FedAdagrad(AdaptiveOptimizer):
    """Adagrad at the server: each coordinate's steps shrink with the sum of the squares of all its updates."""

    server_lr: ServerRate = 0.1
    beta_1: Decay = Field(0.0, description="share of the momentum that stays in each round")

    def second_moment(self, last: Double, squares: Double) -> Double:
        """Return v + update^2."""
        return last + squares
