"""Quality of pseudo-labels, measured against the labels that the simulator hides."""

import torch
from torch import Tensor


class PseudoLabelTally:
    """Counts of pseudo-labels over the steps of a round; kept on the device, read once at the end."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, pseudo_labels: Tensor, accepted: Tensor, truth: Tensor) -> None:
        """Count one step.

        Args:
            pseudo_labels: int64 (n,).
            accepted: Weight of each in [0, 1], shape (n,).
            truth: int64 (n,); -1 where it is not known or was never hidden, which is not counted.
        """
        known = truth >= 0
        weight = accepted.to(torch.float64) * known
        right = (weight * (pseudo_labels == truth)).sum()
        self._counts += torch.stack([known.sum().to(torch.float64), weight.sum(), right])

    def counts(self) -> tuple[float, float, float]:
        """Return (considered, accepted, right): examples seen, weight accepted, weight that was right."""
        considered, accepted, right = self._counts.tolist()
        return considered, accepted, right


def pseudo_label_accuracy(accepted: float, right: float) -> float:
    """Share of accepted pseudo-labels that are right, in [0, 1]; NaN if none was accepted."""
    return right / accepted if accepted else float("nan")


def pseudo_label_coverage(considered: float, accepted: float) -> float:
    """Share of unlabeled examples whose pseudo-label was accepted, in [0, 1]; NaN if none was seen."""
    return accepted / considered if considered else float("nan")
