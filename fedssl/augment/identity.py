"""No augmentation: the view is the image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedssl.augment.base import DrawnAugmentation
from fedssl.core.slots import Tensors
from fedssl.data.shard import as_float


class Identity(DrawnAugmentation):
    """Show every image as it is."""

    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Draw nothing."""
        return {}

    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return the images themselves."""
        return as_float(images)
