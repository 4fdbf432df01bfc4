"""Temporal Ensembling.

Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, arXiv:1610.02242.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from fedssl.core.slots import Slot, State, Tensors
from fedssl.methods.base import Batch, Fresh, Loss, Progress, SemiSupervised, Views
from fedssl.methods.functional import (
    mean_by_example,
    probability_mse,
    sigmoid_ramp,
    supervised_loss,
    widen_half_precision,
)


class TemporalEnsembling(SemiSupervised):
    """Agree with the moving average of the predictions made for the same image on earlier visits.

    A step takes one pass over the unlabeled images. The client remembers its averages between the rounds that it takes
    part in, so they lag behind the global model. An image that was never visited does not count. Deviation: the paper
    updates all averages when an epoch ends; here an average is updated when its image has been visited, which is the
    same if every image is visited once per epoch.
    """

    group: ClassVar[str] = "consistency"

    unlabeled_weight: float = Field(
        30.0, ge=0, description="largest weight of the consistency loss"
    )
    unlabeled_ratio: int = Field(3, ge=1, description="mu, unlabeled images for each labeled image")
    ramp_up: float = Field(
        80 / 300, ge=0, le=1, description="share of the rounds over which the weight grows"
    )
    ensemble_decay: float = Field(
        0.6, ge=0, lt=1, description="alpha, decay of an image's average, per visit"
    )

    def views(self) -> Views:
        """Ask for one weak view of each batch."""
        return Views(("weak",), ("weak",), self.unlabeled_ratio)

    def slots(self) -> tuple[Slot, ...]:
        """Keep an average and a count of visits for every example, at the client."""
        return (Slot("ensemble", "client"),)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start with no prediction: Z of shape (n, num_classes), visits t of shape (n,)."""
        assert fresh.shard is not None, "the ensemble lives at the client"
        num_examples, device = len(fresh.shard), fresh.device
        return {
            "average": torch.zeros(num_examples, fresh.spec.num_classes, device=device),
            "visits": torch.zeros(num_examples, dtype=torch.int64, device=device),
        }

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + w(t) MSE(p(x), z), z = Z / (1 - alpha^t); then Z <- alpha Z + (1 - alpha) p(x).

        Reference: Algorithm 2; w(t) as in appendix A.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        average, visits = state["ensemble"]["average"].detach(), state["ensemble"]["visits"]
        ids, decay = batch.unlabeled_ids, self.ensemble_decay
        logits = network(batch.unlabeled[0])
        # An image that was never visited has t = 0 and Z = 0; its mask is 0, so any divisor will do.
        bias = 1 - decay ** visits[ids].clamp(min=1).to(average.dtype)
        targets = average[ids] / bias.unsqueeze(1)
        mask = (visits[ids] > 0).to(average.dtype)
        weight = self.unlabeled_weight * sigmoid_ramp(progress.fraction, self.ramp_up)
        total = supervised + weight * probability_mse(logits, targets, mask)
        seen, shown = mean_by_example(
            widen_half_precision(logits.detach()).softmax(1), ids, len(visits)
        )
        moved = torch.lerp(seen, average, decay)
        updates = {
            "average": torch.where(shown.unsqueeze(1), moved, average),
            "visits": visits + shown.to(visits.dtype),
        }
        return Loss(total, targets.argmax(1), mask, {"ensemble": updates})
