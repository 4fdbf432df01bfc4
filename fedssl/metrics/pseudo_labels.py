"""Quality of pseudo-labels, measured against the labels that the simulator hides."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Doubles = npt.NDArray[np.float64]


class Step(NamedTuple):
    """The pseudo-labels of a step, or of several steps one after the other.

    Args:
        pseudo_labels: Class given to each example, int64 (..., n).
        accepted: Weight of each pseudo-label in [0, 1], shape (..., n).
        hidden: Whether each example is measured, bool (..., n); it is not if the client trusts a given label of it.
        truth: True class of each example, int64 (..., n); -1 if it is unknown: the example is considered, not judged.
    """

    pseudo_labels: npt.NDArray[np.int64]
    accepted: npt.NDArray[np.floating[Any]]
    hidden: npt.NDArray[np.bool_]
    truth: npt.NDArray[np.int64]


def count_pseudo_labels(step: Step) -> Doubles:
    """Return (considered, accepted, judged, right), shape (..., 4).

    Considered is the number of examples that are measured; accepted is the weight of their pseudo-labels. Judged is the
    accepted weight whose truth is known; right is the accepted weight that names the true class.
    """
    weight = step.accepted.astype(np.float64) * step.hidden
    judged = weight * (step.truth >= 0)
    right = judged * (step.pseudo_labels == step.truth)
    columns = (step.hidden.astype(np.float64), weight, judged, right)
    return np.stack([column.sum(-1) for column in columns], axis=-1)


def count_by_class(step: Step, num_classes: int) -> Doubles:
    """Return (considered, accepted, predicted, right) of every class, shape (..., 4, num_classes).

    Only measured examples of known truth count. Considered is the number of examples of the class; accepted is the
    accepted weight of these examples. Predicted is the accepted weight that names the class, whatever the truth; right
    is the part of it whose truth is the class. Accepted and predicted, summed over classes, both equal ``judged`` of
    `count_pseudo_labels`.

    Args:
        step: The pseudo-labels.
        num_classes: C; classes are 0 .. C-1.
    """
    known = (step.hidden & (step.truth >= 0)).astype(np.float64)
    weight = step.accepted * known
    right = weight * (step.pseudo_labels == step.truth)
    # Every client has bins of its own. Where the truth is unknown, the weight is 0 and the bin does not matter.
    *shape, _ = known.shape
    first = num_classes * np.arange(math.prod(shape)).reshape(*shape, 1)
    own, named = (first + np.maximum(step.truth, 0)).ravel(), (first + step.pseudo_labels).ravel()
    size = math.prod(shape) * num_classes
    columns = ((own, known), (own, weight), (named, weight), (own, right))
    counts = [np.bincount(bins, weights.ravel(), minlength=size) for bins, weights in columns]
    return np.stack([count.reshape(*shape, num_classes) for count in counts], axis=-2)


class PseudoLabelTally:
    """Counts of pseudo-labels over the steps of a round at M clients.

    Steps are kept as they are and counted once at the end, because counting takes long compared with a step of a small
    client. The counts are made on the CPU, because a GPU adds weights in any order.

    Args:
        num_clients: M, the number of clients.
        num_classes: C, the number of classes.
    """

    def __init__(self, num_clients: int, num_classes: int) -> None:
        self._shape = num_clients, num_classes
        self._steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._left_out: list[tuple[Tensor, float]] = []
        self._factor = 1.0

    def add(self, pseudo_labels: Tensor, accepted: Tensor, hidden: Tensor, truth: Tensor) -> None:
        """Keep one step; tensors as the arrays of `Step`, each (M, n), or (n,) for a single client."""
        # numpy has no bfloat16, and no weight is lost in single precision.
        weights = accepted.detach()
        weights = weights.float() if weights.dtype == torch.bfloat16 else weights
        self._steps.append((pseudo_labels, weights, hidden, truth))

    def add_left_out(self, truth: Tensor, times: float) -> None:
        """Count examples without an accepted pseudo-label, at every client.

        Args:
            truth: True class of each example, int64 (n,); -1 if it is unknown.
            times: How often each example counts.
        """
        self._left_out.append((truth, times))

    def scale(self, factor: float) -> None:
        """Multiply the counts of all steps."""
        self._factor *= factor

    def counts(self) -> list[tuple[float, float, float, float]]:
        """Return each client's (considered, accepted, judged, right), as `count_pseudo_labels` defines them."""
        counts = np.zeros((self._shape[0], 4))
        if self._steps:
            counts += self._factor * count_pseudo_labels(self._whole)
        for truth, times in self._left_out:
            counts[:, 0] += times * len(truth)
        return [(own[0], own[1], own[2], own[3]) for own in counts.tolist()]

    def by_class(self) -> list[Sequence[float]]:
        """Return each client's 4 C counts, the result of `count_by_class` row after row."""
        num_clients, num_classes = self._shape
        counts = np.zeros((num_clients, 4, num_classes))
        if self._steps:
            counts += self._factor * count_by_class(self._whole, num_classes)
        for truth, times in self._left_out:
            known = truth[truth >= 0].numpy(force=True)
            counts[:, 0] += times * np.bincount(known, minlength=num_classes)
        return [*counts.reshape(num_clients, -1).tolist()]

    @functools.cached_property
    def _whole(self) -> Step:
        """All steps one after the other, each column (M, n); asked for once all steps are there."""
        whole = (torch.cat(column, dim=-1) for column in zip(*self._steps, strict=True))
        return Step(*(column.view(self._shape[0], -1).numpy(force=True) for column in whole))


def pseudo_label_accuracy(judged: float, right: float) -> float:
    """Return the share of accepted pseudo-labels of known truth that are right, in [0, 1]; NaN if none is judged."""
    return right / judged if judged else float("nan")


def pseudo_label_coverage(considered: float, accepted: float) -> float:
    """Return the share of measured examples whose pseudo-label was accepted, in [0, 1]; NaN without examples."""
    return accepted / considered if considered else float("nan")
