"""Random rotation about the image's center."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment.base import Augmentation
from fedssl.augment.geometry import affine_matrices, warp
from fedssl.augment.weak import Weak


class Rotation(Augmentation):
    """Give every image a weak view's flip and shift, then turn it; what comes from outside is black."""

    weak: Weak = Field(Weak(), description="flip and shift that come first")
    max_degrees: float = Field(
        15.0, ge=0, le=180, description="widest rotation either way, degrees"
    )
    interpolation: Literal["nearest", "bilinear"] = "bilinear"

    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return turned views; see `Augmentation.__call__`."""
        views = self.weak(images, generator, flips=flips)
        uniform = torch.rand(len(views), generator=generator, device=views.device)
        matrices = affine_matrices(degrees=(2 * uniform - 1) * self.max_degrees)
        return warp(views, matrices, self.interpolation)
