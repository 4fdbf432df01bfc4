"""Random grayscale: some images lose their colors, so that colors alone cannot tell two images apart.

An operation of SimCLR (Chen et al., ICML 2020, arXiv:2002.05709, appendix A) with torchvision's luma.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment import functional as ops
from fedssl.augment.base import DrawnAugmentation
from fedssl.core.slots import Tensors
from fedssl.data.shard import as_float


class Grayscale(DrawnAugmentation):
    """Turn some images gray, and change nothing else; gray images stay as they are."""

    probability: float = Field(
        0.2,
        ge=0,
        le=1,
        description="probability that an image turns gray; it has no effect on gray images",
    )

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw which images turn gray, shape (B,)."""
        uniform = torch.rand(count, generator=generator, device=generator.device)
        return {"gray": uniform < self.probability}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return the images, some of them gray; a gray image has the same luma in each channel."""
        given = as_float(images)
        # A blend by 0 or 1 is exact, and ten times faster than a choice by a boolean mask.
        turned = draws["gray"].to(given.dtype).view(-1, 1, 1, 1)
        return torch.lerp(given, ops.grayscale(given), turned)
