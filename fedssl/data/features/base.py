"""The base class of feature skews: a feature skew changes all images of a client in the client's own way."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedssl.core.registry import Family, Plugin


class FeatureSkew(Plugin):
    """A law by which the same class looks different at every client.

    It changes the training images of clients, and the held-out images dealt to them. The server evaluates on unchanged
    images.

    Example:
        A member defines `apply`. This one shows negatives to some clients.

        >>> from fedssl.core.rng import make_numpy_generator
        >>> class Negative(FeatureSkew):
        ...     def apply(self, images, *, law, noise):
        ...         return 255 - images if law.random() < 0.5 else images
        >>> image = torch.full((1, 1, 1, 1), 55, dtype=torch.uint8)
        >>> laws = [make_numpy_generator(0, "features/law", client=client) for client in range(4)]
        >>> [Negative().apply(image, law=law, noise=torch.Generator()).item() for law in laws]
        [200, 200, 200, 55]
    """

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def apply(self, images: Tensor, *, law: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the images as a client sees them.

        Args:
            images: uint8, shape (n, C, H, W); `apply` must not write to them.
            law: The client's stream, for what all its images share, such as an angle. Every call gets the same stream.
            noise: Stream for what differs between the client's images. Calls with the same images get the same stream.

        Returns:
            uint8, shape (n, C, H, W).
        """


FEATURE_SKEWS = Family(
    "feature skew", "fedssl.data.features", FeatureSkew, "federation.features", default=None
)
