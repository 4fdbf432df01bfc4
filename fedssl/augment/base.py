"""What every augmentation is: a frozen section and a pure function of images and a generator."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedssl.core.registry import Family, Plugin
from fedssl.core.slots import Scope, Tensors


class Augmentation(Plugin):
    """Turn a batch of images into a batch of views of the same shape."""

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return one view of each image.

        Args:
            images: Floats in [0, 1] or bytes (uint8), shape (B, C, H, W), C of 1 or 3; never written to.
            generator: Source of every draw, on the images' device.
            flips: Whether a mirrored image of this data still shows the same class.

        Returns:
            Float views in [0, 1], shape (B, C, H, W).
        """


class DrawnAugmentation(Augmentation):
    """An augmentation that draws before it looks at an image.

    Each client's draws come from its own generator, and then the images of many clients are worked on in one call.
    """

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Return all that is random about the views of some images, by name.

        Args:
            count: B, how many images.
            shape: (C, H, W) of each.
            generator: Source of every draw; the draws are on its device.
            flips: As in `Augmentation.__call__`.

        Returns:
            Tensors whose first dimension is the image's, each (B, ...).
        """

    @abstractmethod
    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return the views that the draws say, a new tensor; no image's view depends on another image.

        Args:
            images: As in `Augmentation.__call__`.
            draws: As `draw` returns them; never written to.
        """

    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return one view of each image; see `Augmentation.__call__`."""
        return self.apply(images, self.draw(len(images), images.shape[1:], generator, flips=flips))


@dataclass(frozen=True)
class Probe:
    """Labeled images shown by random choices, to see which of them the network still recognizes.

    Args:
        views: Shape (B, C, H, W).
        chosen: What was chosen for each image, in the augmentation's own terms.
    """

    views: Tensor
    chosen: Tensors


class LearnedAugmentation(Augmentation):
    """An augmentation whose draws follow what it learned from labeled probes.

    A step shows its images by the state, then probes its labeled images and learns. What is learned is named tensors
    that may be averaged: they live where `scope` says.
    """

    is_abstract: ClassVar[bool] = True

    scope: Scope = Field(
        "client",
        description="what was learned is forgotten each round, stays with its client, "
        "or is averaged by the server",
    )

    @abstractmethod
    def initial(self) -> Tensors:
        """Return the state before anything was learned."""

    @abstractmethod
    def show(
        self, images: Tensor, generator: torch.Generator, state: Tensors, *, flips: bool
    ) -> Tensor:
        """Return one view of each image, drawn by the state; else as `__call__`."""

    @abstractmethod
    def probe(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Probe:
        """Show every image by a choice drawn evenly from all there are."""

    @abstractmethod
    def learn(self, state: Tensors, probe: Probe, match: Tensor) -> Tensors:
        """Return the state after a probe; the one given is not written to.

        Args:
            state: What was learned so far.
            probe: What was shown.
            match: How well the network recognized each view: 1 - |p - y|_1 / 2, in [0, 1], shape (B,).
        """

    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return views drawn before anything was learned."""
        state = {name: tensor.to(images.device) for name, tensor in self.initial().items()}
        return self.show(images, generator, state, flips=flips)


AUGMENTATIONS = Family("augmentation", "fedssl.augment", Augmentation, "augment", default=None)
