"""FedLabel: for each image, the surer of the client's own model and the received model gives the pseudo-label.

Cho, Joshi & Dimitriadis, "Local or Global: Selective Knowledge Assimilation for Federated Learning with Limited Labels",
ICCV 2023, arXiv:2307.08809.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import State
from fedssl.methods.base import FORWARD, Batch, Loss, Progress
from fedssl.methods.functional import (
    kl_divergence,
    mean_where,
    supervised_loss,
    widen_half_precision,
)
from fedssl.methods.labeling import BothLabelers, predict_received

Measure = Literal["variance", "entropy"]
"""How sure a prediction is: the variance of its probabilities over the classes, or the inverse of its entropy."""


class FedLabel(BothLabelers):
    """Let the surer of two models label an image, and keep the client near the received model where both agree.

    Both models predict a weak view of every unlabeled image. The label of the surer model is learned on the strong view,
    if its probability reaches the threshold. If both models predict the same class, the client's prediction for the weak
    view is also drawn to the received model's prediction. This second loss counts less, the more the two models differ
    in how sure they are.

    Only the weights travel, as in FedAvg. The received weights are held at the client for the round, so a client needs
    memory for a second model. The weak view is trained on too, so a step costs about 2.3 passes over the unlabeled images.
    A client without labels learns from its pseudo-labels alone. In the first rounds (``warm_up``), clients learn from
    their labels only; where the received model knows nothing, its labels would not help.

    The losses are those of the code that the authors released in the platform FLUTE: how sure a model is, the choice, the
    threshold, both means and the weight of the second loss. These parts are ours:

    - One network learns from labels and pseudo-labels in the same step, and the client's own model is this network as it
      trains. The released code trains two copies of the received model, one on labels and then one on pseudo-labels,
      sends both, and the server averages all of them. This doubles the upload, although the paper says that no further
      parameters are sent.
    - The target of the second loss is the received model's prediction. In the released code it is that of the copy which
      was trained on labels; the code calls this copy the server's model, and the received model the local one.
    - The released code also pulls every weight to its received value. Here that is the strategy ``fedprox``.
    - A probability that is equal to the threshold suffices. The released code's threshold is 0.3, for 100 classes.
    """

    threshold: float = Field(
        0.95,
        ge=0,
        le=1,
        description="least probability of the label; 0.3 in the released code, whose images have 100 classes",
    )
    measure: Measure = Field(
        "variance",
        description="how sure a model is: variance of its probabilities over the classes, or inverse of their entropy",
    )
    consistency_weight: float = Field(
        0.05, ge=0, description="weight of the second loss, relative to the pseudo-labels' loss"
    )
    warm_up: float = Field(
        0.025,
        ge=0,
        le=1,
        description="share of the rounds, at the start, without pseudo-labels; 50 of 2,000 in the released code",
    )
    unlabeled_ratio: int = Field(2, ge=1, description="mu, unlabeled images for each labeled one")

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: both views are trained on, and the received model labels the weak view."""
        return num_labeled + num_unlabeled * (2 + FORWARD)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u (mean CE(label, p(strong)) + w mean(alike KL(received || p(weak)))).

        The first mean is over the images whose label reaches the threshold, and the second mean is over those of them for
        which both models predict the same class. A mean over no image is 0. The number ``agreement`` is the share of
        images with the same class, and ``received_share`` the share of images that the received model labels.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        logits = network(weak)
        local = widen_half_precision(logits.detach()).softmax(1)
        received = predict_received(network, weak, state)
        # Choose the label of the surer model; the client's own model wins a tie.
        own, other = sureness(local, self.measure), sureness(received, self.measure)
        is_own = own >= other
        confidence, labels = torch.where(is_own.unsqueeze(1), local, received).max(1)
        mask = (confidence >= self.threshold).to(confidence.dtype)
        if progress.is_within(self.warm_up):
            mask = torch.zeros_like(mask)
        # Learn the labels, and stay near the received model where both models name the same class.
        agree = (local.argmax(1) == received.argmax(1)).to(mask.dtype)
        hard = mean_where(F.cross_entropy(network(strong), labels, reduction="none"), mask)
        apart = alike(own, other) * kl_divergence(received, logits)
        unlabeled = hard + self.consistency_weight * mean_where(apart, mask * agree)
        total = supervised + self.unlabeled_weight * unlabeled
        numbers = {"agreement": agree.mean(), "received_share": (~is_own).float().mean()}
        return Loss(total, labels, mask, numbers=numbers)


def sureness(probs: Tensor, measure: Measure) -> Tensor:
    """Return how sure predictions are, shape (B,); the surer, the larger.

    Args:
        probs: Probabilities, shape (B, C).
        measure: The variance over the classes, from 0 to 1/C; or one over the entropy (nats) plus 1e-5, so that a
            prediction without doubt has a finite value.
    """
    if measure == "variance":
        return probs.var(1)
    return 1 / (1e-5 - torch.xlogy(probs, probs).sum(1))


def alike(first: Tensor, second: Tensor) -> Tensor:
    """Return the smaller of two models' `sureness` over the larger, in [0, 1], shape (B,); 0 where both are 0."""
    larger = torch.maximum(first, second)
    return torch.minimum(first, second) / larger.clamp(min=torch.finfo(larger.dtype).tiny)
