"""A learning rate that falls along a cosine.

By default, it is the cosine of Sohn et al. (FixMatch), NeurIPS 2020, arXiv:2001.07685, section 2.4, which ends at
cos(7 pi / 16) = .195. With `final`, it is that of Loshchilov & Hutter, "SGDR", ICLR 2017, arXiv:1608.03983, equation 5,
without restarts, as MoCo v2 and SimCLR use it.
"""

import math
from typing import TYPE_CHECKING

from pydantic import Field

from fedssl.training.schedules.base import Schedule

if TYPE_CHECKING:
    from fedssl.training.optimization import Train


class Cosine(Schedule):
    """Let the learning rate fall along FixMatch's cosine, or along half a period of a cosine to a final share."""

    final: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of lr at the end of half a period; unset: FixMatch's lr cos(7 pi k / 16 K)",
    )

    def factor(self, fraction: float, train: "Train") -> float:
        """Return cos(7 pi f / 16), or final + (1 - final) (1 + cos(pi f)) / 2, where f is the fraction."""
        if self.final is None:
            return math.cos(7 * math.pi / 16 * fraction)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * fraction)) / 2
