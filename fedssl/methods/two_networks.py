"""Two networks that learn side by side and guess labels together."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedssl.methods.functional import widen_half_precision


class TwoNetworks(nn.Module):
    """Two classifiers of one architecture with different initial weights, whose logits are added.

    Args:
        first, second: Modules that map images to logits (B, num_classes).
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum of both networks' logits, shape (B, num_classes)."""
        logits: Tensor = self.first(images) + self.second(images)
        return logits

    def both(self) -> tuple[nn.Module, nn.Module]:
        """Return the first and the second network."""
        return self.first, self.second


@torch.no_grad()
def mean_prediction(
    classify: Callable[[Tensor], Tensor], views: Sequence[Tensor], num_classes: int
) -> Tensor:
    """Return the class probabilities of images, mean over their views, outside the graph, shape (B, num_classes).

    Args:
        classify: Maps images to logits. It is not called for an empty batch, which some networks cannot take.
        views: Views of the same images, each (B, C, H, W).
        num_classes: Number of classes.
    """
    if len(views[0]) == 0:
        return views[0].new_zeros(0, num_classes)
    probs = [widen_half_precision(classify(view)).softmax(1) for view in views]
    return torch.stack(probs).mean(0)
