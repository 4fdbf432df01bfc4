"""Random rotation about the image's center."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment.base import DrawnAugmentation
from fedssl.augment.geometry import affine_matrices, warp
from fedssl.augment.weak import Weak
from fedssl.core.slots import Tensors


class Rotation(DrawnAugmentation):
    """Flip and shift every image like a weak view, then rotate it; pixels from outside the image are black."""

    weak: Weak = Field(Weak(), description="flip and shift applied before the rotation")
    max_degrees: float = Field(
        15.0, ge=0, le=180, description="largest rotation either way, degrees"
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        "bilinear",
        description="how a rotated image is resampled; the nearest pixel tears small images",
    )

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw what `Weak` draws, and each image's rotation, shape (B,)."""
        draws = self.weak.draw(count, shape, generator, flips=flips)
        return draws | {"turn": torch.rand(count, generator=generator, device=generator.device)}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return rotated views."""
        views = self.weak.apply(images, draws)
        matrices = affine_matrices(degrees=(2 * draws["turn"] - 1) * self.max_degrees)
        return warp(views, matrices, self.interpolation)
