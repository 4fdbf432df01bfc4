"""Every client holds its camera at an angle of its own.

As in the rotated data sets of Ghosh et al., "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
arXiv:2006.04088; clients there share one of four angles, here each has its own.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedssl.data.features.base import FeatureSkew

IMAGES_AT_ONCE = 256
"""Images turned in one call, as float32."""


class Rotation(FeatureSkew):
    """Turn all images of a client by one angle, drawn uniformly from [-max_degrees, max_degrees)."""

    max_degrees: float = Field(
        45.0, gt=0, le=180, description="largest angle of a client, in degrees, either way"
    )

    def apply(self, images: Tensor, *, law: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the images turned about their center, counter-clockwise if the angle is positive.

        Pixels are interpolated bilinearly; what comes in from outside is black. See `FeatureSkew.apply`.
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import rotate

        angle = law.uniform(-self.max_degrees, self.max_degrees)
        turned = torch.empty_like(images)
        for start in range(0, len(images), IMAGES_AT_ONCE):
            part = slice(start, start + IMAGES_AT_ONCE)
            turned[part] = rotate(images[part], angle, InterpolationMode.BILINEAR)
        return turned
