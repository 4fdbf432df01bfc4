"""RandAugment with random magnitudes, then Cutout: the strong view of FixMatch.

Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS 2020,
arXiv:1909.13719, in the form of Sohn et al. (FixMatch), NeurIPS 2020, arXiv:2001.07685, appendix D: each image draws
its operations from a list of 14 and a magnitude for each uniformly from the operation's range (Table 12), and a
square is cut out at the end. DeVries & Taylor, "Improved Regularization of CNNs with Cutout", 2017, arXiv:1708.04552.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment import functional as ops
from fedssl.augment.base import Augmentation
from fedssl.augment.weak import Weak

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""The 14 operations of FixMatch, Table 12; the last five are affine."""

_FIRST_AFFINE = OPERATIONS.index("rotate")

_POINTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": lambda images, level: ops.autocontrast(images),
    "equalize": lambda images, level: ops.equalize(images),
    "brightness": lambda images, level: ops.brightness(images, 0.05 + 0.9 * level),
    "color": lambda images, level: ops.color(images, 0.05 + 0.9 * level),
    "contrast": lambda images, level: ops.contrast(images, 0.05 + 0.9 * level),
    "sharpness": lambda images, level: ops.sharpness(images, 0.05 + 0.9 * level),
    "posterize": lambda images, level: ops.posterize(images, 4 + torch.floor(5 * level)),
    "solarize": lambda images, level: ops.solarize(images, level),
}
"""Operation -> function of images and of a level drawn from [0, 1)."""


class RandAugment(Augmentation):
    """Give every image a weak view's flip and shift, its own operations, and a cutout."""

    num_ops: int = Field(2, ge=0, le=8, description="operations an image")
    weak: Weak = Field(Weak(), description="flip and shift that come first")
    max_degrees: float = Field(30.0, ge=0, le=180, description="widest rotation, degrees")
    max_shear: float = Field(0.3, ge=0, le=1, description="widest shear, tangent of the angle")
    max_translate: float = Field(
        0.3, ge=0, le=1, description="widest shift, as a share of the image's side"
    )
    interpolation: Literal["nearest", "bilinear"] = "bilinear"
    """How affine operations resample; PIL's policies take the nearest pixel, which tears small images."""
    max_cutout: float = Field(
        0.5, ge=0, le=1, description="widest cutout square, as a share of the image's side"
    )

    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return strong views; see `Augmentation.__call__`."""
        views = self.weak(images, generator, flips=flips)
        batch, device = len(views), views.device
        shape = (self.num_ops, batch)
        chosen = torch.randint(len(OPERATIONS), shape, generator=generator, device=device)
        levels = torch.rand(shape, generator=generator, device=device)
        for operation, level in zip(chosen, levels, strict=True):
            views = self._apply(views, operation, level)
        side, x, y = torch.rand((3, batch), generator=generator, device=device)
        height, width = views.shape[2:]
        size = side * self.max_cutout * min(height, width)
        return ops.cutout(views, size, x * width, y * height)

    def _apply(self, images: Tensor, operation: Tensor, level: Tensor) -> Tensor:
        """Apply to image i operation[i] at level[i] in [0, 1); one call a kind of operation."""
        result = images.clone()
        for name, function in _POINTWISE.items():
            rows = (operation == OPERATIONS.index(name)).nonzero().squeeze(1)
            if len(rows):
                result[rows] = function(images[rows], level[rows])
        rows = (operation >= _FIRST_AFFINE).nonzero().squeeze(1)
        if len(rows):
            matrices = self._matrices(operation[rows], level[rows], images.shape[2:])
            result[rows] = ops.warp(images[rows], matrices, self.interpolation)
        return result

    def _matrices(self, operation: Tensor, level: Tensor, size: torch.Size) -> Tensor:
        signed = 2 * level - 1
        height, width = size

        def where(name: str, reach: float) -> Tensor:
            return torch.where(operation == OPERATIONS.index(name), signed * reach, 0.0)

        return ops.affine_matrices(
            degrees=where("rotate", self.max_degrees),
            shear_x=where("shear_x", self.max_shear),
            shear_y=where("shear_y", self.max_shear),
            shift_x=where("translate_x", self.max_translate * width),
            shift_y=where("translate_y", self.max_translate * height),
        )
