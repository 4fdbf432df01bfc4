"""Base classes of augmentations: an augmentation is a frozen section and a pure function of images and a generator."""

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
    """Turn a batch of images into a batch of views of the same shape.

    Example:
        A new augmentation defines `__call__`:

        >>> class Invert(Augmentation):
        ...     def __call__(self, images, generator, *, flips):
        ...         return 1 - images
        >>> views = Invert()(torch.zeros(2, 1, 4, 4), torch.Generator(), flips=True)
        >>> tuple(views.shape), views.mean().item()
        ((2, 1, 4, 4), 1.0)
    """

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return one view of each image.

        Args:
            images: Floats in [0, 1] or bytes (uint8), shape (B, C, H, W), C is 1 or 3; never written to.
            generator: Source of every draw, on the images' device.
            flips: Whether a mirrored image of this data still shows the same class.

        Returns:
            Float views in [0, 1], shape (B, C, H, W).
        """


class DrawnAugmentation(Augmentation):
    """An augmentation that makes all its random draws before it looks at an image.

    Each client draws from its own generator; then one call changes the images of many clients.

    Example:
        A new drawn augmentation defines `draw` and `apply`:

        >>> class Darken(DrawnAugmentation):
        ...     def draw(self, count, shape, generator, *, flips):
        ...         return {"factor": torch.rand(count, generator=generator)}
        ...     def apply(self, images, draws):
        ...         return images * draws["factor"].view(-1, 1, 1, 1)
        >>> views = Darken()(torch.ones(2, 1, 4, 4), torch.Generator(), flips=True)
        >>> bool((views < 1).all())
        True
    """

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def draw(
        self, count: int, shape: Sequence[int], generator: torch.Generator, *, flips: bool
    ) -> Tensors:
        """Return all random numbers that the views of some images need, by name.

        Args:
            count: B, the number of images.
            shape: (C, H, W) of each image.
            generator: Source of every draw; the returned tensors are on its device.
            flips: As in `Augmentation.__call__`.

        Returns:
            Tensors of shape (B, ...); row i belongs to image i.
        """

    @abstractmethod
    def apply(self, images: Tensor, draws: Tensors) -> Tensor:
        """Return the views that the draws define, as a new tensor; each view depends on its own image alone.

        Args:
            images: As in `Augmentation.__call__`.
            draws: As `draw` returns them; never written to.
        """

    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return one view of each image; see `Augmentation.__call__`."""
        return self.apply(images, self.draw(len(images), images.shape[1:], generator, flips=flips))


@dataclass(frozen=True)
class Probe:
    """Views of labeled images under random choices, to test which choices the network still recognizes.

    Args:
        views: The views, shape (B, C, H, W).
        chosen: The choices made for each image; only the augmentation itself interprets them.
    """

    views: Tensor
    chosen: Tensors


class LearnedAugmentation(Augmentation):
    """An augmentation that learns from labeled probes how to draw.

    In each step it makes views by its state, then probes the labeled images and updates the state. The state is named
    tensors that may be averaged; `scope` says where they live.
    """

    is_abstract: ClassVar[bool] = True

    scope: Scope = Field(
        "client",
        description="where the learned state lives: it is forgotten each round (reset), stays with its client, "
        "or is averaged by the server",
    )

    @abstractmethod
    def initial(self) -> Tensors:
        """Return the state before anything was learned."""

    @abstractmethod
    def show(
        self, images: Tensor, generator: torch.Generator, state: Tensors, *, flips: bool
    ) -> Tensor:
        """Return one view of each image, drawn by the state; the other arguments are as in `__call__`."""

    @abstractmethod
    def probe(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Probe:
        """Return views of all images under choices drawn uniformly from all possible choices."""

    @abstractmethod
    def learn(self, state: Tensors, probe: Probe, match: Tensor) -> Tensors:
        """Return the state after a probe; the given state is not written to.

        Args:
            state: The state before the probe.
            probe: The views that the network was shown.
            match: How well the network recognized each view: 1 - |p - y|_1 / 2, in [0, 1], shape (B,).
        """

    def __call__(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Tensor:
        """Return views drawn by the initial state."""
        state = {name: tensor.to(images.device) for name, tensor in self.initial().items()}
        return self.show(images, generator, state, flips=flips)


AUGMENTATIONS = Family("augmentation", "fedssl.augment", Augmentation, "augment", default=None)
