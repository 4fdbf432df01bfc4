"""What one client holds: its images, the labels it may see, and those the simulator hides from it."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


def as_float(images: Tensor) -> Tensor:
    """Return bytes as 32-bit floats in [0, 1], and floats as they are."""
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


@functools.lru_cache(maxsize=16)
def _by_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a value of each channel as it goes with images, (1, C, 1, 1); made once, for it is used at every step."""
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class ImageSpec:
    """What every image of a data set has in common.

    Args:
        shape: (C, H, W).
        num_classes: Number of classes.
        mean, std: Of each channel on the [0, 1] scale, length C.
        flips: Whether a mirrored image still shows the same class.
    """

    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool

    def normalize(self, images: Tensor) -> Tensor:
        """Shift and scale float images in [0, 1], shape (B, C, H, W), to the data's mean and deviation.

        The result is laid out channels last, as networks are.
        """
        mean = _by_channel(self.mean, images.dtype, images.device)
        std = _by_channel(self.std, images.dtype, images.device)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Shard:
    """One client's examples; an example's row is its id and never changes within a run.

    Args:
        images: uint8, shape (n, C, H, W).
        labels: int64, shape (n,); -1 where the client has no label.
        hidden_labels: int64, shape (n,); the truth where the simulator knows and hides it, else -1. For
            measuring pseudo-labels only: no method is ever given it.
        spec: What the images have in common.
    """

    images: Tensor
    labels: Tensor
    hidden_labels: Tensor
    spec: ImageSpec

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def labeled(self) -> Tensor:
        """Ids of the examples with a label, shape (num_labeled,)."""
        return (self.labels >= 0).nonzero().squeeze(1)

    @functools.cached_property
    def unlabeled(self) -> Tensor:
        """Ids of the pool that unlabeled views are drawn from, shape (n,).

        It holds every example, as in FixMatch: the labeled ones without their label.
        """
        return torch.arange(len(self), device=self.images.device)

    def to(self, device: torch.device) -> "Shard":
        """Return the same shard on a device."""
        if self.images.device == device:
            return self
        return Shard(
            self.images.to(device),
            self.labels.to(device),
            self.hidden_labels.to(device),
            self.spec,
        )
