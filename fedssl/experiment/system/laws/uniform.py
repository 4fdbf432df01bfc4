"""Numbers spread evenly between two bounds."""

import numpy as np
from pydantic import Field, model_validator

from fedssl.experiment.system.laws.base import Law, Numbers


class Uniform(Law):
    """Draw every client's number uniformly from [low, high)."""

    low: float = Field(description="smallest number")
    high: float = Field(
        description="bound that the numbers are below; if it equals low, every client gets low"
    )

    @model_validator(mode="after")
    def _check(self) -> "Uniform":
        if self.low > self.high:
            raise ValueError(f"low = {self.low:g} is more than high = {self.high:g}")
        return self

    def draw(self, num_clients: int, generator: np.random.Generator) -> Numbers:
        """Return independent draws; see `Law.draw`."""
        return generator.uniform(self.low, self.high, num_clients)
