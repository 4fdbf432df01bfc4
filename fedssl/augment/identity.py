"""No augmentation: the view is the image."""

import torch
from torch import Tensor

from fedssl.augment.base import Augmentation
from fedssl.data.shard import as_float


class Identity(Augmentation):
    """Show every image as it is."""

    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return the images themselves."""
        return as_float(images)
