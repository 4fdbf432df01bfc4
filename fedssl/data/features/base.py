"""What every feature skew is: a law that changes all images of a client in the client's own way."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedssl.core.registry import Family, Plugin


class FeatureSkew(Plugin):
    """A law by which clients see differently: same classes, other pixels.

    It changes what clients train on, and the held-out images dealt to them; the server evaluates on images as they are.
    """

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def apply(self, images: Tensor, *, law: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the images as a client sees them.

        Args:
            images: uint8, shape (n, C, H, W); not written to.
            law: The client's own stream: draws what is its own, such as its angle. The same at every call.
            noise: Draws what differs between its images. The same at every call with the same images.

        Returns:
            uint8, same shape.
        """


FEATURE_SKEWS = Family(
    "feature skew", "fedssl.data.features", FeatureSkew, "federation.features", default=None
)
