"""A mix of devices: a few numbers, each at a given share of the clients."""

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, StrictFloat, model_validator

from fedssl.experiment.system.laws.base import Law, Numbers


class Choices(Law):
    """Give each number to exactly its share of the clients; only who gets which is drawn."""

    values: tuple[StrictFloat, ...] = Field(min_length=1, description="the numbers")
    shares: tuple[Annotated[StrictFloat, Field(ge=0)], ...] = Field(
        description="share of the clients that have each number; any scale"
    )

    @model_validator(mode="after")
    def _check(self) -> "Choices":
        if len(self.values) != len(self.shares):
            raise ValueError(
                f"has {len(self.values)} values and {len(self.shares)} shares; one share a value"
            )
        if not any(self.shares):
            raise ValueError("shares are all 0; one of them must be above")
        return self

    def draw(self, num_clients: int, generator: np.random.Generator) -> Numbers:
        """Return the numbers, shuffled; see `Law.draw` and `apportion` for how often each occurs."""
        counts = apportion(num_clients, self.shares)
        return generator.permutation(np.repeat(np.array(self.values, dtype=np.float64), counts))


def apportion(num_items: int, shares: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """Return how many items each share comes to, int64 (S,); they sum to `num_items`.

    Every share gets its quota rounded down; what is left goes, one each, to the largest remainders, of equal ones to
    the first.

    Args:
        num_items: Items to apportion.
        shares: Non-negative, one at least above 0; any scale.
    """
    scaled = np.array(shares) / max(shares)  # whose sum is finite
    quotas = num_items * (scaled / scaled.sum())
    counts: npt.NDArray[np.int64] = np.floor(quotas).astype(np.int64)
    first = np.argsort(counts - quotas, kind="stable")
    counts[first[: num_items - counts.sum()]] += 1
    return counts
