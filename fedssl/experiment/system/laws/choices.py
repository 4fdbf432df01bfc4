"""A mix of a few numbers, each given to a fixed share of the clients."""

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, StrictFloat, model_validator

from fedssl.experiment.system.laws.base import Law, Numbers


class Choices(Law):
    """Give each number to exactly its share of the clients; only which client gets which number is drawn."""

    values: tuple[StrictFloat, ...] = Field(min_length=1, description="numbers that clients get")
    shares: tuple[Annotated[StrictFloat, Field(ge=0)], ...] = Field(
        description="share of the clients that get each number; any scale"
    )

    @model_validator(mode="after")
    def _check(self) -> "Choices":
        if len(self.values) != len(self.shares):
            raise ValueError(
                f"has {len(self.values)} values and {len(self.shares)} shares; give one share per value"
            )
        if not any(self.shares):
            raise ValueError("shares are all 0; at least one must be above 0")
        return self

    def draw(self, num_clients: int, generator: np.random.Generator) -> Numbers:
        """Return the numbers, shuffled; `apportion` says how often each number occurs. See `Law.draw`."""
        counts = apportion(num_clients, self.shares)
        return generator.permutation(np.repeat(np.array(self.values, dtype=np.float64), counts))


def apportion(num_items: int, shares: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """Return how many items each share gets, int64 (S,); the counts sum to `num_items`.

    Every share gets its quota rounded down. The items that are left go, one each, to the shares with the largest
    remainders; of equal remainders, the first share comes first.

    Args:
        num_items: Number of items to apportion.
        shares: Numbers of 0 or more, at least one above 0; any scale.
    """
    scaled = np.array(shares) / max(shares)  # so that the sum is finite
    quotas = num_items * (scaled / scaled.sum())
    counts: npt.NDArray[np.int64] = np.floor(quotas).astype(np.int64)
    first = np.argsort(counts - quotas, kind="stable")
    counts[first[: num_items - counts.sum()]] += 1
    return counts
