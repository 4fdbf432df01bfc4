"""Weak augmentation: flip and shift.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
arXiv:2001.07685, section 2.3: a horizontal flip with probability 1/2 (not where orientation is the class) and a
translation of up to 12.5 % in both directions.
"""

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment.base import Augmentation
from fedssl.augment.geometry import flip_and_shift
from fedssl.data.shard import as_float


class Weak(Augmentation):
    """Mirror half the images, if the data allows it, and shift every image by whole pixels."""

    flip: bool | None = Field(None, description="mirror half the images; unset: as the data allows")
    translate: float = Field(
        0.125, ge=0, lt=0.5, description="widest shift, as a share of the image's side"
    )

    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return flipped and shifted views; see `Augmentation.__call__`."""
        batch, device = len(images), images.device
        mirrored = torch.zeros(batch, dtype=torch.bool, device=device)
        if flips if self.flip is None else self.flip:
            mirrored = torch.rand(batch, generator=generator, device=device) < 0.5
        reach = round(self.translate * min(images.shape[2:]))
        shifts = torch.randint(-reach, reach + 1, (2, batch), generator=generator, device=device)
        # Bytes are moved as bytes: a quarter of the traffic.
        return as_float(flip_and_shift(images, mirrored, shifts[0], shifts[1]))
