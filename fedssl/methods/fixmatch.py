"""FixMatch.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
arXiv:2001.07685.
"""

import torch
from pydantic import Field
from torch import nn

from fedssl.data.shard import Shard
from fedssl.methods.base import Batch, Loss, Method, Progress, State, Views
from fedssl.methods.functional import masked_cross_entropy, supervised_loss


class FixMatch(Method):
    """Let the confident prediction on a weak view be the label of the strong view.

    Deviation: labeled and strong views run through the network one after the other, not concatenated, so that
    ``unlabeled_weight = 0`` is supervised training bit for bit (with normalizations that keep no batch statistics).
    """

    threshold: float = Field(
        0.95, ge=0, le=1, description="tau, least confidence of a pseudo-label"
    )
    unlabeled_weight: float = Field(1.0, ge=0, description="lambda_u, weight of the unlabeled loss")
    unlabeled_ratio: int = Field(7, ge=1, description="mu, unlabeled images for each labeled one")

    def views(self) -> Views:
        """Ask for a weak view of the labeled, a weak and a strong one of the unlabeled batch."""
        return Views(("weak",), ("weak", "strong"), self.unlabeled_ratio)

    def can_learn(self, shard: Shard) -> bool:
        """Learn from unlabeled images alone, unless they weigh nothing."""
        return len(shard.labeled) > 0 or self.unlabeled_weight > 0

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u mean(1[max q >= tau] CE(argmax q, p(strong))), q = p(weak).

        Reference: equations 3 and 4.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        with torch.no_grad():
            confidence, pseudo_labels = network(weak).softmax(1).max(1)
            mask = (confidence >= self.threshold).to(confidence.dtype)
        unlabeled = masked_cross_entropy(network(strong), pseudo_labels, mask)
        total = supervised + self.unlabeled_weight * unlabeled
        return Loss(total, pseudo_labels, mask)
