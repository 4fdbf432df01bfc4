"""What every augmentation is: a frozen section and a pure function of images and a generator."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from fedssl.registry import Family, Plugin


class Augmentation(Plugin):
    """Turn a batch of images into a batch of views of the same shape."""

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return one view of each image.

        Args:
            images: Float images in [0, 1], shape (B, C, H, W), C of 1 or 3; never written to.
            generator: Source of every draw, on the images' device.
            flips: Whether a mirrored image of this data still shows the same class.

        Returns:
            Views in [0, 1], shape (B, C, H, W).
        """


AUGMENTATIONS = Family("augmentation", "fedssl.augment", Augmentation, "augment", default=None)
