"""Noise skew: the sensor of every client has a noise level of its own.

Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, arXiv:2102.02079, section 4.2
(NIID-Bench). In the paper, client i of N gets noise with i/N times a given variance, drawn anew whenever an image is
read. Here, the standard deviation is drawn uniformly, the noise of an image never changes, and pixels remain bytes.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedssl.data.features.base import FeatureSkew

IMAGES_AT_ONCE = 256
"""Number of images that get their noise in one call, as float32; it bounds the memory of a call."""


class Noise(FeatureSkew):
    """Add Gaussian noise whose standard deviation a client draws uniformly from [0, max_std)."""

    max_std: float = Field(
        0.1,
        gt=0,
        le=1,
        description="largest standard deviation of a client's noise; pixels are in [0, 1]",
    )

    def apply(self, images: Tensor, *, law: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the images with independent noise on every channel of every pixel; see `FeatureSkew.apply`."""
        levels = 255 * law.uniform(0, self.max_std)
        noisy = torch.empty_like(images)
        for start in range(0, len(images), IMAGES_AT_ONCE):
            part = images[start : start + IMAGES_AT_ONCE]
            draws = torch.randn(part.shape, generator=noise).mul_(levels).add_(part)
            noisy[start : start + IMAGES_AT_ONCE] = draws.round_().clamp_(0, 255)
        return noisy
