"""Augmentations of whole batches, on any device; every image has its own random draws."""

from fedssl.augment.base import AUGMENTATIONS, Augmentation

__all__ = ["AUGMENTATIONS", "Augmentation"]
