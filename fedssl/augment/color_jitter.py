"""Color jitter: brightness, contrast, saturation and hue, each by a random factor, in a random order.

The color distortion of SimCLR (Chen et al., ICML 2020, arXiv:2002.05709, appendix A), with the ranges of torchvision's
``ColorJitter``. Torchvision draws one order and four factors for each call; this module draws them for each image.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment import functional as ops
from fedssl.augment.base import DrawnAugmentation
from fedssl.augment.grouped import apply_grouped_, single_group
from fedssl.augment.weak import Weak
from fedssl.core.slots import Tensors
from fedssl.data.shard import as_float

GROUPS = (
    single_group("brightness", lambda images, factors: ops.brightness(images, factors[:, 0])),
    single_group("contrast", lambda images, factors: ops.contrast(images, factors[:, 1])),
    single_group("saturation", lambda images, factors: ops.color(images, factors[:, 2])),
    single_group("hue", lambda images, factors: ops.hue(images, factors[:, 3])),
)


class ColorDistortion(DrawnAugmentation):
    """Change the brightness, contrast, saturation and hue of every image by factors of its own, in an order of its own.

    Gray images change in brightness and contrast only.
    """

    is_abstract: ClassVar[bool] = True

    brightness: float = Field(
        0.4, ge=0, description="brightness factors run from max(0, 1 - value) to 1 + value"
    )
    contrast: float = Field(
        0.4, ge=0, description="contrast factors run from max(0, 1 - value) to 1 + value"
    )
    saturation: float = Field(
        0.4, ge=0, description="saturation factors run from max(0, 1 - value) to 1 + value"
    )
    hue: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="largest turn of the hue either way, as a share of the color circle",
    )

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw each image's order of operations and their factors, shape (B, 4) each."""
        size, device = (count, len(GROUPS)), generator.device
        turns = torch.rand(size, generator=generator, device=device).argsort(1)
        factors = self._scale_to_ranges(torch.rand(size, generator=generator, device=device))
        return {"turns": turns, "factors": factors}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return images with changed colors."""
        return self.distort_(as_float(images).clone(), draws["turns"], draws["factors"])

    def distort_(self, images: Tensor, turns: Tensor, factors: Tensor) -> Tensor:
        """Change the colors of float images in place; `turns` and `factors` as `draw` returns them."""
        for turn in turns.unbind(1):
            apply_grouped_(images, turn, factors, GROUPS)
        return images

    def _scale_to_ranges(self, uniform: Tensor) -> Tensor:
        """Map numbers in [0, 1), shape (B, 4), to factors in the range of each operation."""
        blends = (self.brightness, self.contrast, self.saturation)
        low = uniform.new_tensor([*(max(0.0, 1 - width) for width in blends), -self.hue])
        high = uniform.new_tensor([*(1 + width for width in blends), self.hue])
        return low + (high - low) * uniform


class ColorJitter(ColorDistortion):
    """Flip and shift every image like a weak view, then change its colors.

    Gray images change in brightness and contrast only.
    """

    weak: Weak = Field(Weak(), description="flip and shift applied before the colors change")

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw what `Weak` draws, each image's order of operations, and their factors, shape (B, 4) each."""
        weak = self.weak.draw(count, shape, generator, flips=flips)
        return weak | super().draw(count, shape, generator, flips=flips)

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return views with changed colors."""
        return self.distort_(self.weak.apply(images, draws), draws["turns"], draws["factors"])
