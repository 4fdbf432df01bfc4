"""RandAugment with random magnitudes, then Cutout: the strong view of FixMatch.

Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS 2020,
arXiv:1909.13719, in the form of Sohn et al. (FixMatch), NeurIPS 2020, arXiv:2001.07685, appendix D: each image draws
its operations from a list of 14 and a magnitude for each uniformly from the operation's range (Table 12), and a
square is cut out at the end. DeVries & Taylor, "Improved Regularization of CNNs with Cutout", 2017, arXiv:1708.04552.

Ranges are those of Table 12. FixMatch's official code differs from the paper's table, so this module differs from the
code:

- The side of the cutout is uniform in [0, 1/2] of the image's side, as in the table, TorchSSL and USB. The official
  code always cuts 1/2, which is three times the area on average.
- Shear leaves the center of the image in place; PIL, and so the official code, leaves a corner in place. The image's
  middle moves less here.
- Every drawn operation is applied. The official code applies each with probability 1/2.
- Brightness, color, contrast and sharpness go from .05 to .95; in the official code they go from .28 to 1.72.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment import functional as ops
from fedssl.augment.base import DrawnAugmentation
from fedssl.augment.grouped import AFFINE, affine_group, apply_grouped_, single_group
from fedssl.augment.weak import Weak
from fedssl.core.slots import Tensors


def _enhance(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, levels: function(images, 0.05 + 0.9 * levels[:, 0])


POINTWISE = (
    single_group("identity", lambda images, levels: images),
    single_group("autocontrast", lambda images, levels: ops.autocontrast(images)),
    single_group("equalize", lambda images, levels: ops.equalize(images)),
    single_group("brightness", _enhance(ops.brightness)),
    single_group("color", _enhance(ops.color)),
    single_group("contrast", _enhance(ops.contrast)),
    single_group("sharpness", _enhance(ops.sharpness)),
    single_group(
        "posterize", lambda images, levels: ops.posterize(images, 4 + (5 * levels[:, 0]).floor())
    ),
    single_group("solarize", lambda images, levels: ops.solarize(images, levels[:, 0])),
)
OPERATIONS = (*(name for group in POINTWISE for name in group.names), *AFFINE)
"""The 14 operations of FixMatch, Table 12; the last five are affine."""


class RandAugment(DrawnAugmentation):
    """Flip and shift every image like a weak view, apply operations drawn for it, and cut out a square."""

    num_ops: int = Field(2, ge=0, le=8, description="number of operations applied to each image")
    weak: Weak = Field(Weak(), description="flip and shift applied before the operations")
    max_degrees: float = Field(
        30.0, ge=0, le=180, description="largest rotation either way, degrees"
    )
    max_shear: float = Field(
        0.3, ge=0, le=1, description="largest shear either way, as the tangent of its angle"
    )
    max_translate: float = Field(
        0.3, ge=0, le=1, description="largest shift either way, as a share of the image's side"
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        "bilinear",
        description="how affine operations resample; PIL's policies use nearest, which tears small images",
    )
    max_cutout: float = Field(
        0.5,
        ge=0,
        le=1,
        description="largest side of the cutout square, as a share of the image's shorter side",
    )

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw what `Weak` draws, each image's operations and levels, (B, num_ops) each, and its cutout, (B, 3)."""
        draws, device = self.weak.draw(count, shape, generator, flips=flips), generator.device
        size = (self.num_ops, count)
        chosen = torch.randint(len(OPERATIONS), size, generator=generator, device=device)
        levels = torch.rand(size, generator=generator, device=device)
        cutout = torch.rand((3, count), generator=generator, device=device)
        return draws | {"chosen": chosen.t(), "levels": levels.t(), "cutout": cutout.t()}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return strong views."""
        views = self.weak.apply(images, draws)
        for operation, level in zip(draws["chosen"].t(), draws["levels"].t(), strict=True):
            self._apply_(views, operation.contiguous(), level.unsqueeze(1))
        side, x, y = draws["cutout"].unbind(1)
        height, width = views.shape[2:]
        size = side * self.max_cutout * min(height, width)
        return ops.cutout_(views, size, x * width, y * height)

    def _apply_(self, images: Tensor, operation: Tensor, level: Tensor) -> Tensor:
        """Apply operation[i] at level[i] to image i, in place; shapes (B,) and (B, 1)."""
        moved = affine_group(
            self.max_degrees, self.max_shear, self.max_translate, self.interpolation
        )
        return apply_grouped_(images, operation, level, (*POINTWISE, moved))
