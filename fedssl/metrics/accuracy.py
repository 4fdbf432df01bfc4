"""Accuracy and loss of a model on held-out images, whoever judges it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

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
        layers: Number of examples classified correctly by the name of what the judge looks at, such as a layer. The
            first entry is `num_correct`.
    """

    num_examples: int
    num_correct: int
    loss_sum: float
    layers: Mapping[str, int] = field(default_factory=dict)

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
    judge: Callable[[Tensor], Mapping[str, Tensor]],
    images: Tensor,
    labels: Tensor,
    spec: ImageSpec,
) -> list[Evaluation]:
    """Evaluate a judge's scores for images, with one result per batch.

    Args:
        judge: Function from normalized images (B, C, H, W) to logits (B, num_classes), by the name of what it looks at;
            the first logits count. See `fedssl.metrics.evaluators.base.Evaluator.scores`.
        images: uint8, shape (n, C, H, W).
        labels: True classes, int64, shape (n,).
        spec: Says how to normalize the images.
    """
    results = []
    for start in range(0, len(images), BATCH_SIZE):
        part = as_float(images[start : start + BATCH_SIZE])
        target = labels[start : start + BATCH_SIZE]
        scores = judge(spec.normalize(part))
        correct = {name: int((each.argmax(1) == target).sum()) for name, each in scores.items()}
        first = next(iter(scores))
        loss = float(F.cross_entropy(scores[first], target, reduction="sum"))
        results.append(Evaluation(len(target), correct[first], loss, correct))
    return results


def add_evaluations(parts: Iterable[Evaluation]) -> Evaluation:
    """Add up evaluations of parts; the sum is exact, so it does not depend on how the images were split."""
    parts = list(parts)
    names = parts[0].layers if parts else ()
    return Evaluation(
        sum(part.num_examples for part in parts),
        sum(part.num_correct for part in parts),
        math.fsum(part.loss_sum for part in parts),
        {name: sum(part.layers[name] for part in parts) for name in names},
    )


def evaluate(network: nn.Module, images: Tensor, labels: Tensor, spec: ImageSpec) -> Evaluation:
    """Evaluate a classifier in evaluation mode on all images; its mode is restored afterwards.

    Args:
        network: Module that maps normalized images to logits.
        images, labels, spec: As in `evaluate_batches`.
    """
    with evaluation_mode(network):
        parts = evaluate_batches(lambda given: {"classifier": network(given)}, images, labels, spec)
    return add_evaluations(parts)
