"""The same number for every client; ``speed = 2`` is short for this law."""

import numpy as np
from pydantic import Field

from fedssl.experiment.system.laws.base import Law, Numbers


class Fixed(Law):
    """Give every client the same number."""

    value: float = Field(description="the number of every client")

    def draw(self, num_clients: int, generator: np.random.Generator) -> Numbers:
        """Return the number, K times; see `Law.draw`."""
        return np.full(num_clients, self.value)
