"""A second head on a classifier's features, for auxiliary tasks."""

import torch
from torch import Tensor, nn

from fedssl.core.errors import InputError


class TwoHeads(nn.Module):
    """A classifier with a second linear layer on the inputs of its last linear layer.

    Args:
        classifier: Module that maps images to logits; its last linear layer is its head.
        num_outputs: Width of the second head.

    Raises:
        InputError: The classifier has no linear layer.
    """

    def __init__(self, classifier: nn.Module, num_outputs: int) -> None:
        super().__init__()
        linear = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError(
                "model.kind",
                "the method puts a second head beside the model's last linear layer, but the model has no linear layer",
                "take another model",
            )
        self.classifier = classifier
        self.second = nn.Linear(linear[-1].in_features, num_outputs)
        self._heads = (linear[-1],)  # a tuple, so that torch does not register the layer twice

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's logits."""
        logits: Tensor = self.classifier(images)
        return logits

    def second_logits(self, images: Tensor) -> Tensor:
        """Return the second head's logits, shape (B, num_outputs)."""
        features: list[Tensor] = []
        handle = self._heads[0].register_forward_pre_hook(
            lambda module, inputs: features.append(inputs[0])
        )
        try:
            self.classifier(images)
        finally:
            handle.remove()
        logits: Tensor = self.second(features[-1])
        return logits


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each image by a number of quarters, counter-clockwise.

    Args:
        images: Square images, shape (B, C, H, H).
        turns: Number of quarters for each image, 0 to 3, int64 (B,).
    """
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)])
    return turned[turns, torch.arange(len(images), device=images.device)]
