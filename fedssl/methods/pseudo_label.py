"""Pseudo-Label.

Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML 2013
workshop on challenges in representation learning; with the confidence threshold that later comparisons added
(Oliver et al., "Realistic Evaluation of Deep Semi-Supervised Learning Algorithms", NeurIPS 2018, arXiv:1804.09170).
"""

from pydantic import Field
from torch import nn

from fedssl.core.slots import State
from fedssl.methods.base import FORWARD, Batch, Loss, Progress, Views
from fedssl.methods.functional import (
    linear_ramp,
    masked_cross_entropy,
    supervised_loss,
    widen_half_precision,
)
from fedssl.methods.labeling import PseudoLabeling


class PseudoLabel(PseudoLabeling):
    """Train on confident predictions, with the same view that they were made on."""

    threshold: float = Field(
        0.95,
        ge=0,
        le=1,
        description="least confidence of a pseudo-label; Lee's paper has none, which is 0",
    )
    ramp_up: float = Field(
        0.4,
        ge=0,
        le=1,
        description="share of the rounds over which the unlabeled weight grows linearly",
    )

    def views(self) -> Views:
        """Ask for one weak view of each batch."""
        return Views(("weak",), ("weak",), self.unlabeled_ratio)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: the received model labels in a pass of its own, which needs no gradient."""
        labeling = 0 if self.is_local_with(num_labeled) else FORWARD
        return num_labeled + num_unlabeled * (1 + labeling)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + a(t) mean(1[max q >= tau] CE(argmax q, p)), p = p(weak).

        q is the labeler's prediction on the same view; for the local labeler it is p, of the same pass.

        Reference: Lee 2013, equations 15 and 16.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        logits = network(batch.unlabeled[0])
        if self.labels_itself(state):  # the pass that learns also gives the labels
            probs = widen_half_precision(logits.detach()).softmax(1)
        else:
            probs = self.guess(network, batch.unlabeled[0], state)
        confidence, pseudo_labels = probs.max(1)
        mask = (confidence >= self.threshold).to(confidence.dtype)
        weight = self.unlabeled_weight * linear_ramp(progress.fraction, self.ramp_up)
        total = supervised + weight * masked_cross_entropy(logits, pseudo_labels, mask)
        return Loss(total, pseudo_labels, mask)
