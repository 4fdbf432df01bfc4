"""How much arithmetic a pass through a network takes."""

from typing import Any

import torch
from torch import Tensor, nn


def counts_all(network: nn.Module) -> bool:
    """Return whether `multiplications` counts every layer that has a matrix or kernels of weights.

    It knows no attention, no transposed convolution and no layer of a user's own.

    Example:
        >>> counts_all(nn.Linear(4, 2)), counts_all(nn.ConvTranspose2d(4, 4, 3))
        (True, False)
    """
    others = (m for m in network.modules() if not isinstance(m, nn.Conv2d | nn.Linear))
    return not any(p.dim() > 1 for m in others for p in m.parameters(recurse=False))


@torch.no_grad()
def multiplications(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the number of multiplications by weights in a pass of one image, in convolutions and linear layers.

    Attention multiplies activations with each other; that is not counted.

    Args:
        network: A network of images; it is put into evaluation mode for the pass, and back.
        shape: Shape of an image, (C, H, W).

    Example:
        >>> multiplications(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
        640
    """
    counted = 0

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        # Each number of the output is a product of the input with one row of weights.
        counted += output.numel() * layer.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    was_training = network.training
    try:
        network.eval()(torch.zeros(1, *shape))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return counted
