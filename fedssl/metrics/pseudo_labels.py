"""Quality of pseudo-labels, measured against the labels that the simulator hides."""

import math

import torch
from torch import Tensor


def count_pseudo_labels(
    pseudo_labels: Tensor, accepted: Tensor, hidden: Tensor, truth: Tensor
) -> Tensor:
    """Return (considered, accepted, judged, right) of a step in double precision, shape (..., 4).

    Considered is the number of examples that are measured; accepted is the weight of their pseudo-labels. Judged is the
    accepted weight whose truth is known; right is the accepted weight that names the true class.

    Args:
        pseudo_labels: Class given to each example, int64 (..., n).
        accepted: Weight of each pseudo-label in [0, 1], shape (..., n).
        hidden: Whether each example is measured, (..., n); it is not if the client trusts a given label of it.
        truth: True class of each example, int64 (..., n); -1 if it is unknown: the example is considered, not judged.
    """
    weight = accepted.to(torch.float64) * hidden
    judged = weight * (truth >= 0)
    right = (judged * (pseudo_labels == truth)).sum(-1)
    considered = hidden.sum(-1).to(torch.float64)
    return torch.stack([considered, weight.sum(-1), judged.sum(-1), right], dim=-1)


def count_by_class(
    pseudo_labels: Tensor, accepted: Tensor, hidden: Tensor, truth: Tensor, num_classes: int
) -> Tensor:
    """Return (considered, accepted, predicted, right) of every class in double precision, shape (..., 4, num_classes).

    Only measured examples of known truth count. Considered is the number of examples of the class; accepted is the
    accepted weight of these examples. Predicted is the accepted weight that names the class, whatever the truth; right
    is the part of it whose truth is the class. Accepted and predicted, summed over classes, both equal ``judged`` of
    `count_pseudo_labels`.

    Args:
        pseudo_labels, accepted, hidden, truth: As in `count_pseudo_labels`.
        num_classes: C; classes are 0 .. C-1.
    """
    known = (hidden & (truth >= 0)).to(torch.float64)
    weight = accepted * known
    own = truth.clamp(min=0)  # where the truth is unknown, the weight is 0
    classes = torch.stack([own, own, pseudo_labels, own], dim=-2)
    weights = torch.stack([known, weight, weight, weight * (pseudo_labels == truth)], dim=-2)
    *shape, _ = classes.shape
    bins = torch.arange(math.prod(shape), device=classes.device).view(*shape, 1) * num_classes
    size = math.prod(shape) * num_classes
    counts = torch.bincount((bins + classes).flatten(), weights.flatten(), minlength=size)
    # Without examples, bincount returns integers.
    return counts.view(*shape, num_classes).to(torch.float64)


class PseudoLabelTally:
    """Counts of pseudo-labels over the steps of a round; kept on the device, read once at the end."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, pseudo_labels: Tensor, accepted: Tensor, hidden: Tensor, truth: Tensor) -> None:
        """Count one step; arguments as in `count_pseudo_labels`, each of shape (n,)."""
        self._counts += count_pseudo_labels(pseudo_labels, accepted, hidden, truth)

    def add_left_out(self, truth: Tensor, times: float) -> None:
        """Count examples without an accepted pseudo-label.

        Args:
            truth: True class of each example, int64 (n,); -1 if it is unknown.
            times: How often each example counts.
        """
        self._counts[0] += times * len(truth)

    def scale(self, factor: float) -> None:
        """Multiply everything that was counted so far."""
        self._counts *= factor

    def counts(self) -> tuple[float, float, float, float]:
        """Return the round's (considered, accepted, judged, right), as `count_pseudo_labels` defines them."""
        considered, accepted, judged, right = self._counts.tolist()
        return considered, accepted, judged, right


class ClassTally:
    """Counts of pseudo-labels by class over the steps of a round at M clients.

    Steps are kept as they are and counted once at the end, because counting takes long compared with a step of a small
    client.

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
        """Keep one step; arguments as in `count_pseudo_labels`, each (M, n), or (n,) for a single client."""
        self._steps.append((pseudo_labels, accepted.detach(), hidden, truth))

    def add_left_out(self, truth: Tensor, times: float) -> None:
        """Count examples of every client; arguments as in `PseudoLabelTally.add_left_out`."""
        self._left_out.append((truth, times))

    def scale(self, factor: float) -> None:
        """Multiply the counts of all steps."""
        self._factor *= factor

    def counts(self) -> list[list[float]]:
        """Return each client's 4 C counts, the result of `count_by_class` row after row."""
        num_clients, num_classes = self._shape
        counts = torch.zeros(num_clients, 4, num_classes, dtype=torch.float64)
        if self._steps:
            # The counts are made on the CPU, because a GPU adds the weights of a class in any order.
            columns = (torch.cat(column, dim=-1).cpu() for column in zip(*self._steps, strict=True))
            pseudo_labels, accepted, hidden, truth = columns
            of_steps = count_by_class(pseudo_labels, accepted, hidden, truth, num_classes)
            counts += self._factor * of_steps.view(num_clients, 4, num_classes)
        for left_out, times in self._left_out:
            known = left_out[left_out >= 0].cpu()
            counts[..., 0, :] += times * torch.bincount(known, minlength=num_classes)
        each: list[list[float]] = counts.view(num_clients, -1).tolist()
        return each


def pseudo_label_accuracy(judged: float, right: float) -> float:
    """Return the share of accepted pseudo-labels of known truth that are right, in [0, 1]; NaN if none is judged."""
    return right / judged if judged else float("nan")


def pseudo_label_coverage(considered: float, accepted: float) -> float:
    """Return the share of measured examples whose pseudo-label was accepted, in [0, 1]; NaN without examples."""
    return accepted / considered if considered else float("nan")
