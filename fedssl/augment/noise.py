"""Gaussian pixel noise, the cheapest strong view."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment.base import DrawnAugmentation
from fedssl.core.slots import Tensors
from fedssl.data.shard import as_float


class Noise(DrawnAugmentation):
    """Add independent Gaussian noise to every pixel."""

    std: float = Field(0.1, ge=0, description="standard deviation of the noise on the [0, 1] scale")

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw the noise of every pixel, shape (B, C, H, W)."""
        noise = torch.empty((count, *shape), device=generator.device)
        return {"noise": noise.normal_(0, self.std, generator=generator)}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return noisy images, clipped to [0, 1]."""
        return (draws["noise"] + as_float(images)).clamp_(0, 1)
