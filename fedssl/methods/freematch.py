"""FreeMatch.

Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, arXiv:2205.07246.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import ChangingScope, Slot, State, Tensors
from fedssl.methods.base import Batch, Fresh, Loss, Progress
from fedssl.methods.functional import (
    class_shares,
    masked_cross_entropy,
    running_mean,
    supervised_loss,
    widen_half_precision,
)
from fedssl.methods.labeling import PseudoLabeling


class FreeMatch(PseudoLabeling):
    """FixMatch with thresholds that follow the network's confidence, globally and by class, and a fairness loss.

    The running statistics are averages, so the mean of the clients' statistics is the cohort's. Deviations: the paper
    starts the statistics at chance and forgets over about 1,000 steps (decay 0.999), a thousandth of its training. A
    federation of a few thousand steps would stay at chance for long, and its thresholds would lag behind the network
    throughout. Here the statistics are the plain mean of the first steps, and then forget over about 100 steps (decay
    0.99). The fairness loss is part of the unlabeled loss, and has no weight if that loss has none.
    """

    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="decay of the statistics, per step; 0.999 in the paper"
    )
    fairness_weight: float = Field(0.01, ge=0, description="w_f, weight of the fairness loss")
    statistics_scope: ChangingScope = Field(
        "server",
        description="where the statistics live: they start anew each round (reset), stay with the client, "
        "or are averaged by the server",
    )

    def slots(self) -> tuple[Slot, ...]:
        """Keep the running statistics in the scope that the experiment says."""
        return (*super().slots(), Slot("statistics", self.statistics_scope))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start at chance, after no step: confidence 1/C, every class with probability and share 1/C."""
        if name != "statistics":
            return super().init_slot(name, fresh)
        num_classes, device = fresh.spec.num_classes, fresh.device
        chance = torch.full((num_classes,), 1 / num_classes, device=device)
        return {
            "confidence": chance[0].clone(),
            "probs": chance,
            "shares": chance.clone(),
            "steps": torch.zeros((), device=device),
        }

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + w_u (mean(1[max q >= tau_c] CE(c, p(strong))) + w_f L_f), q = p(weak), c = argmax q.

        tau_c = p_c / max p * tau, with the running confidence tau and class probabilities p, this step's included.

        Reference: equations 5 to 8 and 11 to 13.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        probs = self.guess(network, weak, state)
        confidence, pseudo_labels = probs.max(1)
        statistics = self._move_statistics(state["statistics"], probs, pseudo_labels)
        thresholds = statistics["confidence"] * statistics["probs"] / statistics["probs"].max()
        mask = (confidence >= thresholds[pseudo_labels]).to(confidence.dtype)
        logits = network(strong)
        unlabeled = masked_cross_entropy(logits, pseudo_labels, mask)
        unlabeled = unlabeled + self.fairness_weight * fairness_loss(logits, mask, statistics)
        total = supervised + self.unlabeled_weight * unlabeled
        numbers = {"threshold": thresholds.mean(), "lowest_threshold": thresholds.min()}
        return Loss(total, pseudo_labels, mask, {"statistics": statistics}, numbers)

    def _move_statistics(
        self, statistics: Tensors, probs: Tensor, pseudo_labels: Tensor
    ) -> Tensors:
        now = {
            "confidence": probs.max(1).values.mean(),
            "probs": probs.mean(0),
            "shares": class_shares(pseudo_labels, probs.shape[1]),
        }
        steps = statistics["steps"]
        return running_mean(statistics, now, steps, self.ema_decay) | {"steps": steps + 1}


def fairness_loss(logits: Tensor, mask: Tensor, statistics: Tensors) -> Tensor:
    """Return -H(norm(p / h), norm(p' / h')): the lower, the more even the classes of strong views are.

    p and h are the running class probabilities and shares; p' and h' are those of the strong views that count. The loss
    is 0 if no view counts.

    Args:
        logits: Logits of strong views, shape (B, num_classes).
        mask: 1 for examples that count, 0 for the others, shape (B,).
        statistics: Running ``probs`` and ``shares``, each (num_classes,).

    Reference: Wang et al. (FreeMatch), equations 11 and 12.
    """
    counted = mask.sum().clamp(min=1)
    probs = widen_half_precision(logits).softmax(1)
    hard = F.one_hot(probs.argmax(1), probs.shape[1]).to(probs.dtype)
    mean_probs = (probs * mask.unsqueeze(1)).sum(0) / counted
    shares = (hard * mask.unsqueeze(1)).sum(0) / counted
    wanted = _divide_and_normalize(statistics["probs"], statistics["shares"])
    found = _divide_and_normalize(mean_probs, shares)
    return (wanted * torch.log(found + 1e-12)).sum() * (mask.sum() > 0)


def _divide_and_normalize(probs: Tensor, shares: Tensor) -> Tensor:
    """Divide probabilities by shares and scale to a sum of 1; a class whose share is 0 gets 0."""
    ratio = torch.where(shares > 0, probs / shares.clamp(min=1e-12), 0.0)
    return ratio / ratio.sum().clamp(min=1e-12)
