"""The data of one client: its images, the labels it may see, and the true classes as far as the simulator knows them."""

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor


def as_float(images: Tensor) -> Tensor:
    """Return images of bytes as 32-bit floats in [0, 1]; images of floats are returned unchanged."""
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


@functools.lru_cache(maxsize=16)
def _by_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return one value for each channel, (1, C, 1, 1); the result is cached, because every step uses it."""
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class ImageSpec:
    """The common properties of all images of a data set.

    Args:
        shape: (C, H, W), in pixels.
        num_classes: Number of classes.
        mean, std: Mean and standard deviation of each channel on the [0, 1] scale, length C.
        flips: Whether a mirrored image still shows the same class.
    """

    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize float images in [0, 1], shape (B, C, H, W), by the data's mean and standard deviation.

        The result has the memory layout channels last, as the networks have.
        """
        mean = _by_channel(self.mean, images.dtype, images.device)
        std = _by_channel(self.std, images.dtype, images.device)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Shard:
    """One client's examples; an example's row is its id and never changes within a run.

    Args:
        images: uint8, shape (n, C, H, W).
        labels: Labels that the client has, int64, shape (n,); -1 where it has none.
        truth: True class of every example, int64, shape (n,); -1 where nobody knows it, as in a client's private data.
            Under label noise a given label may differ from it. It only measures: no view or batch carries it, and a
            method must not read it.
        spec: Common properties of the images.
    """

    images: Tensor
    labels: Tensor
    truth: Tensor
    spec: ImageSpec

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def labeled(self) -> Tensor:
        """Ids of the examples with a label, shape (num_labeled,)."""
        return (self.labels >= 0).nonzero().squeeze(1)

    @functools.cached_property
    def unlabeled(self) -> Tensor:
        """Ids of the examples that unlabeled views are drawn from, shape (n,).

        As in FixMatch, these are all examples: labeled examples are used a second time without their label.
        """
        return torch.arange(len(self), device=self.images.device)

    def without_truth(self) -> "Shard":
        """Return the same shard with every true class unknown, which is all that a method may see."""
        hidden = dataclasses.replace(self, truth=torch.full_like(self.truth, -1))
        computed = {n: v for n, v in vars(self).items() if n in ("labeled", "unlabeled")}
        vars(hidden).update(computed)
        return hidden

    def to(self, device: torch.device) -> "Shard":
        """Return the same shard on a device.

        A GPU copies from pinned memory, so the process does not wait for the copy.
        """
        if self.images.device == device:
            return self
        images, labels, truth = (
            (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
            for tensor in (self.images, self.labels, self.truth)
        )
        return Shard(images, labels, truth, self.spec)
