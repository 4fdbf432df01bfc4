"""Numbers with a long tail, like the speeds of many devices and networks."""

import numpy as np
from pydantic import Field

from fedssl.experiment.system.laws.base import Law, Numbers


class Lognormal(Law):
    """Draw every client's number as ``median * exp(sigma * z)``, z standard normal."""

    median: float = Field(
        gt=0, description="number that half of the clients are expected to be below"
    )
    sigma: float = Field(
        ge=0, le=10, description="standard deviation of the numbers' natural logarithm"
    )

    def draw(self, num_clients: int, generator: np.random.Generator) -> Numbers:
        """Return independent draws; see `Law.draw`."""
        with np.errstate(over="ignore"):  # `draw_within` refuses infinity
            return self.median * generator.lognormal(0, self.sigma, num_clients)
