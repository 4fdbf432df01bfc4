"""Accuracy and loss of a classifier on held-out images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedssl.data.shard import ImageSpec, as_float


@dataclass(frozen=True)
class Evaluation:
    """Sums over evaluated examples, so that evaluations of parts add up to that of the whole.

    Args:
        num_examples: Examples evaluated.
        num_correct: Those whose most probable class is the true one.
        loss_sum: Sum of their cross-entropies, nats.
    """

    num_examples: int
    num_correct: int
    loss_sum: float

    @property
    def accuracy(self) -> float:
        """Share that is right, in [0, 1]; NaN of nothing."""
        return self.num_correct / self.num_examples if self.num_examples else float("nan")

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; NaN of nothing."""
        return self.loss_sum / self.num_examples if self.num_examples else float("nan")


@torch.no_grad()
def evaluate(
    network: nn.Module, images: Tensor, labels: Tensor, spec: ImageSpec, batch_size: int = 256
) -> Evaluation:
    """Evaluate a classifier in evaluation mode; its mode is put back afterwards.

    Args:
        network: From normalized images to logits.
        images: uint8, shape (n, C, H, W).
        labels: int64, shape (n,).
        spec: How to normalize.
        batch_size: Images a forward pass.
    """
    training = network.training
    network.eval()
    correct, loss = 0, 0.0
    try:
        for start in range(0, len(images), batch_size):
            part = as_float(images[start : start + batch_size])
            target = labels[start : start + batch_size]
            logits = network(spec.normalize(part))
            correct += int((logits.argmax(1) == target).sum())
            loss += float(F.cross_entropy(logits, target, reduction="sum"))
    finally:
        network.train(training)
    return Evaluation(len(images), correct, loss)
