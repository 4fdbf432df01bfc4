"""A classifier's predictions for images, as probabilities."""

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
    """Return the probability of every class, (B, num_classes), computed as in evaluation.

    Args:
        network: Module in evaluation mode that maps normalized images to logits.
        images: Bytes, or floats in [0, 1], shape (B, C, H, W).
        spec: Says how to normalize the images.
    """
    parts = [torch.empty(0, spec.num_classes, device=images.device)]
    for start in range(0, len(images), BATCH_SIZE):
        part = as_float(images[start : start + BATCH_SIZE])
        parts.append(network(spec.normalize(part)).softmax(1))
    return torch.cat(parts)


def as_images(given: npt.NDArray[Any] | Tensor, spec: ImageSpec) -> Tensor:
    """Check that a network for this data can take the images, and return them as a tensor.

    Args:
        given: Bytes, or floats in [0, 1], shape (B, C, H, W) as in `spec`.
        spec: What the data's images have in common.

    Raises:
        InputError: The images have another shape, type or range.
    """
    if not isinstance(given, Tensor):  # torch wants contiguous arrays that may be written to
        given = np.require(given, requirements=["C", "W"])
    images = torch.as_tensor(given)
    if images.ndim != 4 or tuple(images.shape[1:]) != spec.shape:
        wanted = ", ".join(map(str, spec.shape))
        raise InputError(
            "images", f"has shape {tuple(images.shape)}", f"give images of shape (B, {wanted})"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError("images", f"is {images.dtype}", "give uint8, or floats in [0, 1]")
    images = images.to(torch.float32)
    if len(images) and not bool(((images >= 0) & (images <= 1)).all()):
        least, most = float(images.min()), float(images.max())
        remedy = "scale floats to [0, 1]; fedssl normalizes them itself"
        raise InputError("images", f"runs from {least:.3g} to {most:.3g}", remedy)
    return images
