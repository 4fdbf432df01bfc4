"""Two networks that learn side by side and guess labels together."""

import torch
from torch import Tensor, nn

from fedssl.methods.functional import predict

NUM_VIEWS = 2
"""Views of each image; their mean prediction is the guess."""


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


def mean_predictions(
    own: nn.Module, other: nn.Module, images: Tensor, num_labeled: int
) -> tuple[Tensor, Tensor]:
    """Return what labels are refined by, (B, C), and the guesses for unlabeled images, (mu B, C), outside the graph.

    Labels are refined by the mean of the own network's predictions over the views. A guess is the mean of both networks'
    predictions over the views.

    Args:
        own, other: The network in training and its partner, both in evaluation mode.
        images: Views of the labeled images, one view after the other, and then of the unlabeled images.
        num_labeled: Number of views of labeled images.
    """
    probs = predict(own, images)
    refining, guesses = probs[:num_labeled], probs[num_labeled:]
    if len(guesses) > 0:
        guesses = (guesses + predict(other, images[num_labeled:])) / 2
    return _mean_of_views(refining), _mean_of_views(guesses)


def _mean_of_views(probs: Tensor) -> Tensor:
    return torch.stack(probs.tensor_split(NUM_VIEWS)).mean(0)
