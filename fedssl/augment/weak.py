"""Weak augmentation: flip and shift.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
arXiv:2001.07685, section 2.3: a horizontal flip with probability 1/2 (unless a mirrored image may show another class)
and a translation of up to 12.5 % in both directions. The largest shift is rounded to whole pixels: 4 of 32 pixels
(12.5 %), 1 of 8 (12.5 %), but 4 of 28 (14.3 %).
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment.base import DrawnAugmentation
from fedssl.augment.geometry import flip_and_shift
from fedssl.core.slots import Tensors
from fedssl.data.shard import as_float


class Weak(DrawnAugmentation):
    """Mirror half the images, if the data allows it, and shift every image by whole pixels."""

    flip: bool | None = Field(
        None,
        description="whether half of the images are mirrored; unset: only if the data allows it",
    )
    translate: float = Field(
        0.125,
        ge=0,
        lt=0.5,
        description="largest shift either way, as a share of the image's shorter side; rounded to whole pixels",
    )

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw which images are mirrored, and each image's shifts in pixels, right and down, shape (B,) each."""
        device = generator.device
        mirrored = torch.zeros(count, dtype=torch.bool, device=device)
        if flips if self.flip is None else self.flip:
            mirrored = torch.rand(count, generator=generator, device=device) < 0.5
        reach = round(self.translate * min(shape[1:]))
        shifts = torch.randint(-reach, reach + 1, (2, count), generator=generator, device=device)
        return {"mirrored": mirrored, "right": shifts[0], "down": shifts[1]}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return flipped and shifted views."""
        # Bytes are moved before they become floats: that is a quarter of the memory traffic.
        return as_float(flip_and_shift(images, draws["mirrored"], draws["right"], draws["down"]))
