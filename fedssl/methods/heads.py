"""A second head on a classifier's features, for auxiliary tasks."""

import torch
from torch import Tensor, nn

from fedssl.models.base import Classifier


class TwoHeads(nn.Module):
    """A classifier with a second linear layer on its features.

    Args:
        classifier: The classifier.
        num_outputs: Width of the second head.
    """

    def __init__(self, classifier: Classifier, num_outputs: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.second = nn.Linear(classifier.width, num_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's logits."""
        logits: Tensor = self.classifier(images)
        return logits

    def second_logits(self, images: Tensor) -> Tensor:
        """Return the second head's logits, shape (B, num_outputs)."""
        logits: Tensor = self.second(self.classifier.features(images))
        return logits


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each image by a number of quarters, counter-clockwise.

    Args:
        images: Square images, shape (B, C, H, H).
        turns: Number of quarters for each image, 0 to 3, int64 (B,).
    """
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)])
    return turned[turns, torch.arange(len(images), device=images.device)]
