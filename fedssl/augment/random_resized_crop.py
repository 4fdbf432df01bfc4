"""Random resized crop: a part of the image of random area, shape and place, enlarged to the size of the image.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, arXiv:1409.4842, section 6, in the form of torchvision's
``RandomResizedCrop``. SimCLR found that it is the one operation that contrastive learning cannot do without (Chen et
al., ICML 2020, arXiv:2002.05709, section 3.1).
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedssl.augment.base import DrawnAugmentation
from fedssl.augment.geometry import enlarge_crops
from fedssl.core.slots import Tensors
from fedssl.data.shard import as_float

TRIES = 10
"""An image draws this many areas and ratios, and takes the first whose crop fits into the image."""


class RandomResizedCrop(DrawnAugmentation):
    """Mirror half the images, if the data allows it, and enlarge a random part of every image.

    The rule is torchvision's, for each image: the area is uniform, the logarithm of the ratio of width to height is
    uniform, and both sides are rounded to whole pixels. The first of ten draws that fits into the image counts; if none
    fits, the crop is the largest one whose ratio is in the range, and lies in the middle. Crops are enlarged bilinearly.
    A crop is never larger than its view, so there is nothing to antialias.
    """

    flip: bool | None = Field(
        None,
        description="whether half of the images are mirrored; unset: only if the data allows it",
    )
    min_area: float = Field(
        0.2,
        gt=0,
        le=1,
        description="smallest area of a crop, as a share of the image's area; MoCo v2 has .2, SimCLR .08",
    )
    max_area: float = Field(
        1.0, gt=0, le=1, description="largest area of a crop, as a share of the image's area"
    )
    min_ratio: float = Field(
        3 / 4, gt=0, description="smallest ratio of a crop's width to its height, in pixels"
    )
    max_ratio: float = Field(
        4 / 3, gt=0, description="largest ratio of a crop's width to its height, in pixels"
    )

    @model_validator(mode="after")
    def _check(self) -> "RandomResizedCrop":
        for name in ("area", "ratio"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise ValueError(
                    f"min_{name} = {low:g} is above max_{name} = {high:g}; swap the two"
                )
        return self

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw which images are mirrored, and the ``crop`` of each: top, left, height, width in pixels, shape (B, 4)."""
        device = generator.device
        mirrored = torch.zeros(count, dtype=torch.bool, device=device)
        if flips if self.flip is None else self.flip:
            mirrored = torch.rand(count, generator=generator, device=device) < 0.5
        uniform = torch.rand((2, count, TRIES), generator=generator, device=device)
        height, width, is_fallback = self._sizes(uniform[0], uniform[1], shape)
        place = torch.rand((2, count), generator=generator, device=device)
        top, left = (
            torch.where(is_fallback, (room / 2).floor(), _pixel(u, room))
            for u, room in ((place[0], shape[1] - height), (place[1], shape[2] - width))
        )
        return {"mirrored": mirrored, "crop": torch.stack([top, left, height, width], dim=1)}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return the enlarged crops."""
        return enlarge_crops(as_float(images), draws["crop"], draws["mirrored"])

    def _sizes(
        self, area: Tensor, ratio: Tensor, shape: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the height and the width of each crop, in whole pixels, and whether no try fits, shape (B,) each.

        Args:
            area, ratio: Numbers in [0, 1) that say where in its range each try lies, shape (B, TRIES) each.
            shape: (C, H, W) of each image.
        """
        height, width = shape[1:]
        low, high = math.log(self.min_ratio), math.log(self.max_ratio)
        pixels = height * width * (self.min_area + (self.max_area - self.min_area) * area)
        ratios = torch.exp(low + (high - low) * ratio)
        # The last column is the fallback, which always fits.
        rest = self._fallback(height, width)
        heights, widths = (
            torch.cat([tries.sqrt().round(), tries.new_full((len(tries), 1), side)], dim=1)
            for tries, side in ((pixels / ratios, rest[0]), (pixels * ratios, rest[1]))
        )
        fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        height_of_first, width_of_first = heights.gather(1, first), widths.gather(1, first)
        return height_of_first.squeeze(1), width_of_first.squeeze(1), first.squeeze(1) == TRIES

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and the width of the largest crop whose ratio is in the range."""
        if width < self.min_ratio * height:
            return max(1, round(width / self.min_ratio)), width
        if width > self.max_ratio * height:
            return height, max(1, round(height * self.max_ratio))
        return height, width


def _pixel(uniform: Tensor, room: Tensor) -> Tensor:
    """Return whole numbers from 0 to `room`, all with the same chance; `uniform` holds numbers in [0, 1)."""
    # u < 1, but u * (room + 1) may round to room + 1.
    return torch.minimum((uniform * (room + 1)).floor(), room)
