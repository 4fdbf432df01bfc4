"""The view of contrastive learning: crop, flip, color jitter, grayscale and blur.

Chen, Fan, Girshick & He, "Improved Baselines with Momentum Contrastive Learning" (MoCo v2), 2020, arXiv:2003.04297, whose
operations are those of SimCLR (Chen et al., ICML 2020, arXiv:2002.05709, appendix A) with the strengths of MoCo v2's
official code: crops from .2 of the area; jitter of .4, .4, .4 and .1 with probability .8; grayscale with probability .2;
blur of .1 to 2 pixels with probability .5; a flip with probability 1/2.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment.base import DrawnAugmentation
from fedssl.augment.color_jitter import ColorDistortion
from fedssl.augment.gaussian_blur import GaussianBlur
from fedssl.augment.grayscale import Grayscale
from fedssl.augment.grouped import apply_to_some_
from fedssl.augment.random_resized_crop import RandomResizedCrop
from fedssl.core.slots import Tensors


class Contrast(DrawnAugmentation):
    """Enlarge a random part of every image; then change the colors of most, turn some gray, and blur some.

    Gray images change in brightness and contrast, but not in saturation and hue, and turning gray has no effect on them.
    The official code flips last. Here, the crop flips, which gives the same views.
    """

    crop: RandomResizedCrop = Field(
        RandomResizedCrop(),
        description="the random part of the image that a view shows, and the flip",
    )
    jitter_probability: float = Field(
        0.8, ge=0, le=1, description="probability that the colors of an image change"
    )
    jitter: ColorDistortion = Field(
        ColorDistortion(), description="how strongly the colors of an image change"
    )
    grayscale: Grayscale = Field(Grayscale(), description="which images turn gray")
    blur: GaussianBlur = Field(GaussianBlur(), description="which images are blurred, and how much")

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw what each operation draws, and which images change their colors, ``jittered``, shape (B,)."""
        parts = (self.crop, self.jitter, self.grayscale, self.blur)
        draws: Tensors = {}
        for part in parts:
            draws |= part.draw(count, shape, generator, flips=flips)
        uniform = torch.rand(count, generator=generator, device=generator.device)
        return draws | {"jittered": uniform < self.jitter_probability}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return contrastive views."""
        views, turns, factors = self.crop.apply(images, draws), draws["turns"], draws["factors"]
        apply_to_some_(
            views,
            draws["jittered"],
            lambda some, rows: self.jitter.distort_(some, turns[rows], factors[rows]),
        )
        return self.blur.blur_(self.grayscale.apply(views, draws), draws)
