"""Pi-model.

Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, arXiv:1610.02242.
"""

from typing import ClassVar

from pydantic import Field
from torch import nn

from fedssl.core.slots import State
from fedssl.methods.base import Batch, Loss, Progress, SemiSupervised, View, Views
from fedssl.methods.functional import (
    probability_mse,
    sigmoid_ramp,
    supervised_loss,
    widen_half_precision,
)


class PiModel(SemiSupervised):
    """Give two views of an image, under two draws of dropout, the same prediction.

    Deviation: each term is the mean over its own batch. The paper takes the cross-entropy over the whole mixed batch
    and scales the other term by the share of labeled images, which is the same as a weight of 100 here.
    """

    group: ClassVar[str] = "consistency"

    unlabeled_weight: float = Field(
        100.0, ge=0, description="largest weight of the consistency loss"
    )
    unlabeled_ratio: int = Field(3, ge=1, description="mu, unlabeled images for each labeled image")
    ramp_up: float = Field(
        80 / 300, ge=0, le=1, description="share of the rounds over which the weight grows"
    )
    second_view: View = Field("weak", description="view of the second pass; the paper's is weak")

    def views(self) -> Views:
        """Ask for a weak view of the labeled batch and two views of the unlabeled batch."""
        return Views(("weak",), ("weak", self.second_view), self.unlabeled_ratio)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + w(t) MSE(p(x'), p(x'')), with gradients through both passes.

        Reference: Algorithm 1; w(t) as in appendix A.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        first, second = (network(view) for view in batch.unlabeled)
        probs = widen_half_precision(first).softmax(1)
        weight = self.unlabeled_weight * sigmoid_ramp(progress.fraction, self.ramp_up)
        total = supervised + weight * probability_mse(second, probs)
        return Loss(total, probs.argmax(1), probs.new_ones(len(probs)))
