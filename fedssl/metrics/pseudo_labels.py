"""Quality of pseudo-labels, measured against the labels that the simulator hides."""

import torch
from torch import Tensor


def count_pseudo_labels(
    pseudo_labels: Tensor, accepted: Tensor, hidden: Tensor, truth: Tensor
) -> Tensor:
    """Return (considered, accepted, judged, right) of a step in double precision, shape (..., 4).

    Args:
        pseudo_labels: int64 (..., n).
        accepted: Weight of each in [0, 1], shape (..., n).
        hidden: Whether the example is one without a label, (..., n); others are not counted.
        truth: int64 (..., n); -1 where nobody knows it: such an example counts as accepted or not, but not as right.
    """
    weight = accepted.to(torch.float64) * hidden
    judged = weight * (truth >= 0)
    right = (judged * (pseudo_labels == truth)).sum(-1)
    considered = hidden.sum(-1).to(torch.float64)
    return torch.stack([considered, weight.sum(-1), judged.sum(-1), right], dim=-1)


class PseudoLabelTally:
    """Counts of pseudo-labels over the steps of a round; kept on the device, read once at the end."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, pseudo_labels: Tensor, accepted: Tensor, hidden: Tensor, truth: Tensor) -> None:
        """Count one step; arguments as in `count_pseudo_labels`, each of shape (n,)."""
        self._counts += count_pseudo_labels(pseudo_labels, accepted, hidden, truth)

    def counts(self) -> tuple[float, float, float, float]:
        """Return (considered, accepted, judged, right): examples seen; weight accepted, of known truth, and right."""
        considered, accepted, judged, right = self._counts.tolist()
        return considered, accepted, judged, right


def pseudo_label_accuracy(judged: float, right: float) -> float:
    """Share of accepted pseudo-labels of known truth that are right, in [0, 1]; NaN if there is none."""
    return right / judged if judged else float("nan")


def pseudo_label_coverage(considered: float, accepted: float) -> float:
    """Share of unlabeled examples whose pseudo-label was accepted, in [0, 1]; NaN if none was seen."""
    return accepted / considered if considered else float("nan")
