"""Two networks that learn side by side and guess labels together."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedssl.methods.functional import widen_half_precision
from fedssl.models.base import Classifier, WithFeatures


class TwoNetworks(WithFeatures):
    """Two classifiers of one architecture with different initial weights, whose logits are added.

    Args:
        first, second: Classifiers that map images to logits (B, num_classes).
    """

    def __init__(self, first: Classifier, second: Classifier) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum of both networks' logits, shape (B, num_classes)."""
        logits: Tensor = self.first(images) + self.second(images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return both networks' features side by side, shape (B, 2 width)."""
        return torch.cat([network.features(images) for network in self.both()], dim=1)

    def both(self) -> tuple[Classifier, Classifier]:
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
