"""Color jitter: brightness, contrast, saturation and hue, each by a random factor, in a random order.

The color distortion of SimCLR (Chen et al., ICML 2020, arXiv:2002.05709, appendix A), with the ranges of torchvision's
``ColorJitter``. There, a call draws one order and four factors; here, every image does.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment import functional as ops
from fedssl.augment.base import DrawnAugmentation
from fedssl.augment.grouped import apply_grouped_, single
from fedssl.augment.weak import Weak
from fedssl.core.slots import Tensors

GROUPS = (
    single("brightness", lambda images, factors: ops.brightness(images, factors[:, 0])),
    single("contrast", lambda images, factors: ops.contrast(images, factors[:, 1])),
    single("saturation", lambda images, factors: ops.color(images, factors[:, 2])),
    single("hue", lambda images, factors: ops.hue(images, factors[:, 3])),
)


class ColorJitter(DrawnAugmentation):
    """Give every image a weak view's flip and shift, then other colors; gray images have two of the four."""

    weak: Weak = Field(Weak(), description="flip and shift that come first")
    brightness: float = Field(0.4, ge=0, description="factor from max(0, 1 - this) to 1 + this")
    contrast: float = Field(0.4, ge=0, description="factor from max(0, 1 - this) to 1 + this")
    saturation: float = Field(0.4, ge=0, description="factor from max(0, 1 - this) to 1 + this")
    hue: float = Field(0.1, ge=0, le=0.5, description="widest turn, as a share of the color circle")

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw what `Weak` draws, and each image's order of operations and their factors, shape (B, 4)."""
        draws, device = self.weak.draw(count, shape, generator, flips=flips), generator.device
        size = (count, len(GROUPS))
        turns = torch.rand(size, generator=generator, device=device).argsort(1)
        factors = self._factors(torch.rand(size, generator=generator, device=device))
        return draws | {"turns": turns, "factors": factors}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return views of other colors."""
        views = self.weak.apply(images, draws)
        for turn in draws["turns"].unbind(1):
            apply_grouped_(views, turn, draws["factors"], GROUPS)
        return views

    def _factors(self, uniform: Tensor) -> Tensor:
        """Stretch numbers in [0, 1), shape (B, 4), to the range of each operation."""
        blends = (self.brightness, self.contrast, self.saturation)
        low = uniform.new_tensor([*(max(0.0, 1 - width) for width in blends), -self.hue])
        high = uniform.new_tensor([*(1 + width for width in blends), self.hue])
        return low + (high - low) * uniform
