"""FedAdam: Adam at the server, without bias correction.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.
"""

from pydantic import Field

from fedssl.exchange.sums import Double
from fedssl.strategies.adaptive import AdaptiveOptimizer
from fedssl.strategies.server_optimizer import Decay


class FedAdam(AdaptiveOptimizer):
    """Adam at the server: each coordinate's step is divided by the root of a running mean of its squared updates."""

    beta_2: Decay = Field(0.99, description="share of the second moment that stays in each round")

    def second_moment(self, last: Double, squares: Double) -> Double:
        """Return beta_2 v + (1 - beta_2) update^2."""
        return self.beta_2 * last + (1 - self.beta_2) * squares
