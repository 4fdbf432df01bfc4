"""Accuracy and loss of a classifier on held-out images."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedssl.data.shard import ImageSpec, as_float
from fedssl.models.modes import evaluation_mode


@dataclass(frozen=True)
class Evaluation:
    """Sums over evaluated examples, so that evaluations of parts add up to the evaluation of the whole.

    Args:
        num_examples: Examples evaluated.
        num_correct: Examples whose most probable class is the true class.
        loss_sum: Sum of the examples' cross-entropies, nats.
    """

    num_examples: int
    num_correct: int
    loss_sum: float

    @property
    def accuracy(self) -> float:
        """Share of examples that are classified correctly, in [0, 1]; NaN without examples."""
        return self.num_correct / self.num_examples if self.num_examples else float("nan")

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; NaN without examples."""
        return self.loss_sum / self.num_examples if self.num_examples else float("nan")


BATCH_SIZE = 256
"""A forward pass of an evaluation takes at most this many images."""


@torch.no_grad()
def evaluate_batches(
    network: nn.Module, images: Tensor, labels: Tensor, spec: ImageSpec
) -> list[Evaluation]:
    """Evaluate a classifier in evaluation mode, with one result per batch; its mode is restored afterwards.

    Args:
        network: Module that maps normalized images to logits.
        images: uint8, shape (n, C, H, W).
        labels: True classes, int64, shape (n,).
        spec: Says how to normalize the images.
    """
    results = []
    with evaluation_mode(network):
        for start in range(0, len(images), BATCH_SIZE):
            part = as_float(images[start : start + BATCH_SIZE])
            target = labels[start : start + BATCH_SIZE]
            logits = network(spec.normalize(part))
            correct = int((logits.argmax(1) == target).sum())
            loss = float(F.cross_entropy(logits, target, reduction="sum"))
            results.append(Evaluation(len(target), correct, loss))
    return results


def add_evaluations(parts: Iterable[Evaluation]) -> Evaluation:
    """Add up evaluations of parts; the sum is exact, so it does not depend on how the images were split."""
    parts = list(parts)
    return Evaluation(
        sum(part.num_examples for part in parts),
        sum(part.num_correct for part in parts),
        math.fsum(part.loss_sum for part in parts),
    )


def evaluate(network: nn.Module, images: Tensor, labels: Tensor, spec: ImageSpec) -> Evaluation:
    """Evaluate a classifier on all images; arguments as in `evaluate_batches`."""
    return add_evaluations(evaluate_batches(network, images, labels, spec))
