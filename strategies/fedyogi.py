"""FedYogi: Yogi at the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2. Yogi is from Zaheer et al.,
"Adaptive Methods for Nonconvex Optimization", NeurIPS 2018.
"""

import numpy as np
from pydantic import Field

from fedssl.exchange.sums import Double
from fedssl.strategies.adaptive import AdaptiveOptimizer
from fedssl.strategies.server_optimizer import Decay


class FedYogi(AdaptiveOptimizer):
    """Yogi at the server: like Adam, but the second moment moves by (1 - beta_2) update^2, however far it is off."""

    beta_2: Decay = Field(
        0.99,
        description="1 - beta_2 is the share of the squared update that moves the second moment",
    )

    def second_moment(self, last: Double, squares: Double) -> Double:
        """Return v - (1 - beta_2) update^2 sign(v - update^2), which never falls below 0."""
        return last - (1 - self.beta_2) * squares * np.sign(last - squares)
