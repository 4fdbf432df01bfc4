"""Augmentation of whole batches on any device, every image with its own draw."""

from fedssl.augment.base import AUGMENTATIONS, Augmentation

__all__ = ["AUGMENTATIONS", "Augmentation"]
