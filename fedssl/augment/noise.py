"""Gaussian pixel noise, the cheapest strong view."""

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment.base import Augmentation
from fedssl.data.shard import as_float


class Noise(Augmentation):
    """Add independent Gaussian noise to every pixel."""

    std: float = Field(0.1, ge=0, description="standard deviation on the [0, 1] scale")

    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return noisy images, clipped to [0, 1]."""
        images = as_float(images)
        draw = torch.empty_like(images).normal_(0, self.std, generator=generator)
        return draw.add_(images).clamp_(0, 1)
