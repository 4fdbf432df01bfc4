"""Images for comparisons, and the tolerance within which two implementations agree."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LEVELS = torch.tensor([0.05, 0.3, 0.5, 0.8, 1.0, 1.9])


def photos(channels: int, size: int = 32, count: int = 6) -> Tensor:
    """Return smooth random images in whole 1/255 steps, so that both sides see the same bytes."""
    generator = torch.Generator().manual_seed(channels * 100 + size)
    coarse = torch.rand(count, channels, size // 4, size // 4, generator=generator)
    smooth = F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def assert_close(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    """At least 99 % of the pixels of every image are within 2/255."""
    agree = ((ours - theirs).abs() <= 2.001 / 255).float().flatten(1).mean(1)
    assert agree.min() >= 0.99, f"{name} {agree.tolist()} of the pixels agree"


def as_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    levels = as_bytes(image).permute(1, 2, 0).numpy()
    return Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)


def from_pil(image: Image.Image) -> Tensor:
    levels = np.asarray(image)
    planes = levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)
    return torch.from_numpy(planes.copy()).float() / 255
