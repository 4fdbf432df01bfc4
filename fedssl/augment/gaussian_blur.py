"""Random Gaussian blur: some images are blurred, each with a width of its own.

An operation of SimCLR (Chen et al., ICML 2020, arXiv:2002.05709, appendix A); MoCo v2 uses it in the same form (Chen et
al., 2020, arXiv:2003.04297). Both draw a standard deviation between .1 and 2 pixels for images of 224 pixels; SimCLR
leaves the blur out for the images of CIFAR-10, which have 32 pixels.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedssl.augment import functional as ops
from fedssl.augment.base import DrawnAugmentation
from fedssl.augment.grouped import apply_to_some_
from fedssl.core.slots import Tensors
from fedssl.data.shard import as_float

CUT = 3
"""The kernel ends at this many of the largest standard deviations; .3 % of the weight lies beyond."""


class GaussianBlur(DrawnAugmentation):
    """Blur some images, and change nothing else; borders are reflected, as torchvision reflects them.

    SimCLR's kernel is a tenth of the image wide, and the kernel of MoCo's code is PIL's approximation by boxes. Here, the
    kernel is as wide as the largest standard deviation needs.
    """

    probability: float = Field(0.5, ge=0, le=1, description="probability that an image is blurred")
    min_sigma: float = Field(
        0.1, gt=0, description="smallest standard deviation of the kernel, in pixels"
    )
    max_sigma: float = Field(
        2.0, gt=0, description="largest standard deviation of the kernel, in pixels"
    )

    @model_validator(mode="after")
    def _check(self) -> "GaussianBlur":
        if self.min_sigma > self.max_sigma:
            raise ValueError(
                f"min_sigma = {self.min_sigma:g} is above max_sigma = {self.max_sigma:g}; swap the two"
            )
        return self

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw which images are blurred, (B,), and each image's kernels along its height and width, (B, taps) each."""
        uniform = torch.rand((2, count), generator=generator, device=generator.device)
        sigma = self.min_sigma + (self.max_sigma - self.min_sigma) * uniform[1]
        height, width = (ops.gaussian_kernels(sigma, self._radius(side)) for side in shape[1:])
        return {"blurred": uniform[0] < self.probability, "kernel_y": height, "kernel_x": width}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return the images, some of them blurred."""
        return self.blur_(as_float(images).clone(), draws)

    def blur_(self, images: Tensor, draws: Tensors) -> Tensor:
        """Blur float images in place; `draws` as `draw` returns them."""
        along, across = draws["kernel_y"], draws["kernel_x"]
        return apply_to_some_(
            images,
            draws["blurred"],
            lambda some, rows: ops.gaussian_blur(some, along[rows], across[rows]),
        )

    def _radius(self, side: int) -> int:
        """Return the radius of the kernel along a side of an image, in pixels; a reflection ends at the far border."""
        return min(math.ceil(CUT * self.max_sigma), side - 1)
