"""FixMatch.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
arXiv:2001.07685.
"""

from pydantic import Field
from torch import nn

from fedssl.core.slots import State
from fedssl.methods.base import Batch, Loss, Progress
from fedssl.methods.functional import masked_cross_entropy, supervised_loss
from fedssl.methods.labeling import PseudoLabeling


class FixMatch(PseudoLabeling):
    """Let the confident prediction on a weak view be the label of the strong view.

    Deviation: labeled and strong views run through the network one after the other, not concatenated, so that
    ``unlabeled_weight = 0`` is supervised training bit for bit (with normalizations that keep no batch statistics).
    """

    threshold: float = Field(
        0.95, ge=0, le=1, description="tau, least confidence of a pseudo-label"
    )

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u mean(1[max q >= tau] CE(argmax q, p(strong))), q = p(weak).

        Reference: equations 3 and 4.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        confidence, pseudo_labels = self.guess(network, weak, state).max(1)
        mask = (confidence >= self.threshold).to(confidence.dtype)
        unlabeled = masked_cross_entropy(network(strong), pseudo_labels, mask)
        total = supervised + self.unlabeled_weight * unlabeled
        return Loss(total, pseudo_labels, mask)
