"""Rotation skew: every client holds its camera at an angle of its own.

Follows the rotated data sets of Ghosh et al., "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
arXiv:2006.04088. In the paper, each client has one of four angles; here, each client has its own angle.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedssl.data.features.base import FeatureSkew

IMAGES_AT_ONCE = 256
"""Number of images that are turned in one call, as float32; it bounds the memory of a call."""


class Rotation(FeatureSkew):
    """Turn all images of a client by one angle, drawn uniformly from [-max_degrees, max_degrees)."""

    max_degrees: float = Field(
        45.0,
        gt=0,
        le=180,
        description="largest angle of a client in degrees, clockwise or counter-clockwise",
    )

    def apply(self, images: Tensor, *, law: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the images turned about their center, counter-clockwise if the angle is positive.

        Pixels are interpolated bilinearly; pixels from outside the image are black. See `FeatureSkew.apply`.
        """
        angle = law.uniform(-self.max_degrees, self.max_degrees)
        turned = torch.empty_like(images)
        grid = _grid(angle, *images.shape[-2:])
        for start in range(0, len(images), IMAGES_AT_ONCE):
            part = slice(start, start + IMAGES_AT_ONCE)
            pixels = images[part].float()
            places = grid.expand(len(pixels), -1, -1, -1)
            # The outside is black by default. `align_corners=False` treats pixels as squares, not points.
            turned[part] = F.grid_sample(pixels, places, align_corners=False).round_()
        return turned


def _grid(angle: float, height: int, width: int) -> Tensor:
    """Return the place that each pixel of a turned image comes from, shape (1, H, W, 2).

    The last axis is (x, y); both run from -1 to 1 from edge to edge of the image.

    Args:
        angle: Angle of the turn in degrees, counter-clockwise.
        height, width: Size of the image in pixels.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = torch.linspace(0.5 - width / 2, width / 2 - 0.5, width).expand(height, width)
    y = (
        torch.linspace(0.5 - height / 2, height / 2 - 0.5, height)
        .unsqueeze(1)
        .expand(height, width)
    )
    here = torch.stack([x, y], -1).view(1, -1, 2)
    turn = torch.tensor([[cos, sin], [-sin, cos]])
    return (here @ (turn / torch.tensor([width / 2, height / 2]))).view(1, height, width, 2)
