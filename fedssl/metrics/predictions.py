"""What a classifier says of images, as probabilities."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedssl.core.errors import InputError
from fedssl.data.shard import ImageSpec, as_float
from fedssl.metrics.accuracy import BATCH_SIZE


@torch.no_grad()
def predict_probs(network: nn.Module, images: Tensor, spec: ImageSpec) -> Tensor:
    """Return the probability of every class, (B, classes), by the arithmetic of evaluation.

    Args:
        network: In evaluation mode, from normalized images to logits.
        images: (B, C, H, W); bytes, or floats in [0, 1].
        spec: How to normalize.
    """
    parts = [torch.empty(0, spec.num_classes)]
    for start in range(0, len(images), BATCH_SIZE):
        part = as_float(images[start : start + BATCH_SIZE])
        parts.append(network(spec.normalize(part)).softmax(1))
    return torch.cat(parts)


def as_images(given: npt.NDArray[Any] | Tensor, spec: ImageSpec) -> Tensor:
    """Return images as a tensor, once they are what a network of this data can take.

    Args:
        given: (B, C, H, W) as in `spec`; bytes, or floats in [0, 1].
        spec: What the data's images have in common.

    Raises:
        InputError: They are of another shape, type or range.
    """
    if not isinstance(given, Tensor):  # torch wants arrays that lie in order and may be written to
        given = np.require(given, requirements=["C", "W"])
    images = torch.as_tensor(given)
    if images.ndim != 4 or tuple(images.shape[1:]) != spec.shape:
        wanted = ", ".join(map(str, spec.shape))
        raise InputError("images", f"has shape {tuple(images.shape)}", f"give it (B, {wanted})")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError("images", f"is {images.dtype}", "give uint8, or floats in [0, 1]")
    images = images.to(torch.float32)
    if len(images) and not bool(((images >= 0) & (images <= 1)).all()):
        least, most = float(images.min()), float(images.max())
        remedy = "scale floats to [0, 1]; they are normalized here"
        raise InputError("images", f"runs from {least:.3g} to {most:.3g}", remedy)
    return images
