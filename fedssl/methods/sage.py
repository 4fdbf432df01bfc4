"""SAGE: the received model corrects the client's own pseudo-labels, the more the two models' confidences differ.

Liu et al., "Mind the Gap: Confidence Discrepancy Can Guide Federated Semi-Supervised Learning Across Pseudo-Mismatch",
CVPR 2025, arXiv:2503.13227.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import State
from fedssl.methods.base import FORWARD, Batch, Loss, Progress
from fedssl.methods.functional import kl_divergence, predict, supervised_loss
from fedssl.methods.labeling import BothLabelers, predict_received


class SAGE(BothLabelers):
    """Mix the client's own hard label with the received model's hard label, and learn the mixture on the strong view.

    Both models predict a weak view of every unlabeled image. If the client's own model is confident, its label has the
    weight exp(-kappa |difference of the confidences|), and the received model's label has the rest. Otherwise, the
    received model's label stands alone. An image counts if either model is confident. So where the models agree, the
    target is one class; where they do not, their confidences decide.

    Only the weights travel, as in FedAvg. The received weights are held at the client for the round, so a client needs
    memory for a second model. A step costs one more pass without gradients over the weak views than FixMatch. A client
    without labels learns from its pseudo-labels alone. In the first round, the received model is the new network, and
    nearly no image counts.

    Deviations:

    - The official code passes labeled, weak and strong views through the network in one batch. Here they pass one after
      the other, as in the other methods here, and no gradient is kept for the weak view.
    - The official code adds 1e-6 to the difference of the confidences and 1e-10 to all probabilities. The second constant
      bounds an image's loss at 23, and an image whose target has a probability below 1e-10 moves nothing. Here equal
      confidences give exactly the weight 1, and the divergence comes from the logarithm of the softmax, without a bound.
    - The official code has one optimizer for all clients and all rounds, so that momentum passes from client to client,
      and it weighs a client by 2,000 times its labeled images plus its unlabeled images. Both are properties of its
      federation and not of this loss; here momentum starts anew, and the strategy weighs clients.
    """

    threshold: float = Field(
        0.95, ge=0, le=1, description="tau, least confidence of either model's prediction"
    )
    half_trust: float = Field(
        0.05,
        ge=1e-6,
        description="difference of the two confidences at which the two labels count alike; kappa is ln 2 over this",
    )
    unlabeled_ratio: int = Field(2, ge=1, description="mu, unlabeled images for each labeled one")

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: two models label the weak view without gradients, the strong view is trained on."""
        return num_labeled + num_unlabeled * (1 + 2 * FORWARD)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u mean(mask KL(target || p(strong))), with targets of `corrected_labels`.

        The number ``agreement`` is the share of images for which both models predict the same class.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        local, received = predict(network, weak), predict_received(network, weak, state)
        targets, mask = corrected_labels(local, received, self.threshold, self.half_trust)
        unlabeled = (mask * kl_divergence(targets, network(strong))).mean()
        total = supervised + self.unlabeled_weight * unlabeled
        agreement = (local.argmax(1) == received.argmax(1)).float().mean()
        return Loss(total, targets.argmax(1), mask, numbers={"agreement": agreement})


def corrected_labels(
    local: Tensor, received: Tensor, threshold: float, half_trust: float
) -> tuple[Tensor, Tensor]:
    """Return soft pseudo-labels, shape (B, C), and 1 for each image that counts, 0 for the others, shape (B,).

    Args:
        local: The client's own predictions, probabilities (B, C).
        received: The received model's predictions, probabilities (B, C).
        threshold: tau, least confidence.
        half_trust: Difference of confidences at which the client's own label has the weight 1/2.
    """
    local_confidence, local_labels = local.max(1)
    received_confidence, received_labels = received.max(1)
    is_sure = local_confidence >= threshold
    trust = 0.5 ** ((local_confidence - received_confidence).abs() / half_trust)
    trust = torch.where(is_sure, trust, torch.zeros_like(trust)).unsqueeze(1)
    num_classes = local.shape[1]
    own = F.one_hot(local_labels, num_classes).to(trust.dtype)
    other = F.one_hot(received_labels, num_classes).to(trust.dtype)
    # Exactly one class where both labels are the same: lerp of equal ends is that end.
    targets = torch.lerp(other, own, trust)
    return targets, (is_sure | (received_confidence >= threshold)).to(trust.dtype)
