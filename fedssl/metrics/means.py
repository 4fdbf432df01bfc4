"""Means over the steps of a round, kept on the device and read once at its end."""

from collections.abc import Mapping

import torch
from torch import Tensor


class StepMeans:
    """Means of named numbers over steps, in double precision; what is not finite in a step does not count in it."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, numbers: Mapping[str, Tensor]) -> None:
        """Count one step.

        Args:
            numbers: Scalars by name, or one a client, (M,); not every step needs to have all.
        """
        for name, number in numbers.items():
            value = number.detach().to(torch.float64)
            known = value.isfinite()
            summed, count = self._sums.get(name, (torch.zeros_like(value), torch.zeros_like(value)))
            self._sums[name] = summed + torch.where(known, value, 0.0), count + known

    def means(self) -> dict[str, Tensor]:
        """Return the means by name, each of the shape that was added; NaN where no step counted."""
        return {name: summed / count for name, (summed, count) in self._sums.items()}
