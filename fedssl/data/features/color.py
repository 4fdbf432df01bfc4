"""Color skew: the camera of every client weighs the colors in its own way."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedssl.data.features.base import FeatureSkew


class Color(FeatureSkew):
    """Multiply each channel by a gain that a client draws uniformly from [1 - strength, 1 + strength).

    The gains give color images a color cast, and gray images another brightness.
    """

    strength: float = Field(
        0.3, gt=0, lt=1, description="largest distance from 1 of a client's gain of a channel"
    )

    def apply(self, images: Tensor, *, law: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the images with every channel multiplied by the client's gain; see `FeatureSkew.apply`."""
        gains = law.uniform(1 - self.strength, 1 + self.strength, size=images.shape[1])
        cast = torch.empty_like(images)
        for channel, gain in enumerate(gains):
            cast[:, channel] = (images[:, channel] * gain).round_().clamp_(0, 255)
        return cast
