"""Unsupervised Data Augmentation.

Xie, Dai, Hovy, Luong & Le, "Unsupervised Data Augmentation for Consistency Training", NeurIPS 2020,
arXiv:1904.12848.
"""

import math
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import State
from fedssl.methods.base import Batch, Loss, Progress
from fedssl.methods.functional import masked_cross_entropy, sharpen, widen_half_precision
from fedssl.methods.labeling import PseudoLabeling

Annealing = Literal["none", "linear", "log", "exp"]


class UDA(PseudoLabeling):
    """Let the sharpened prediction on a weak view be the soft target of the strong view.

    Training-signal annealing leaves out labeled images that the network already gets right with more confidence than
    the schedule allows by then. It is off by default, as in the authors' scripts for CIFAR-10 and SVHN; the paper
    anneals its text tasks and studies annealing in an ablation on images.
    """

    threshold: float = Field(
        0.8, ge=0, le=1, description="least confidence at which an image counts"
    )
    temperature: float = Field(0.4, gt=0, description="T of the sharpened targets")
    annealing: Annealing = Field(
        "none",
        description="schedule that lets labeled images in over the rounds; none: all images count from the start",
    )

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return annealed CE(y, p(weak)) + lambda mean(1[max q >= tau] CE(sharpen(q, T), p(strong))), q = p(weak).

        The paper's KL has the same gradient as this cross-entropy. Reference: equation 1 with confidence-based masking
        and prediction sharpening.
        """
        supervised = self.annealed_loss(network, batch.labeled[0], batch.labels, progress.fraction)
        weak, strong = batch.unlabeled
        probs = self.guess(network, weak, state)
        confidence, pseudo_labels = probs.max(1)
        mask = (confidence >= self.threshold).to(confidence.dtype)
        targets = sharpen(probs, self.temperature)
        unlabeled = masked_cross_entropy(network(strong), targets, mask)
        return Loss(supervised + self.unlabeled_weight * unlabeled, pseudo_labels, mask)

    def annealed_loss(
        self, network: nn.Module, images: Tensor, labels: Tensor, fraction: float
    ) -> Tensor:
        """Return the mean cross-entropy of the labeled images whose p_y is below the schedule; 0 if there are none.

        Args:
            network: Module that maps images to logits.
            images: Shape (B, C, H, W).
            labels: int64 (B,).
            fraction: Share of training that is over.

        Reference: training signal annealing.
        """
        if len(labels) == 0:
            return images.new_zeros(())
        logits = network(images)
        if self.annealing == "none":
            return F.cross_entropy(logits, labels)
        limit = annealing_threshold(self.annealing, fraction, logits.shape[1])
        right = (
            widen_half_precision(logits.detach())
            .softmax(1)
            .gather(1, labels.unsqueeze(1))
            .squeeze(1)
        )
        kept = (right < limit).to(right.dtype)
        per_example = F.cross_entropy(logits, labels, reduction="none")
        mean: Tensor = (per_example * kept).sum() / kept.sum().clamp(min=1)
        return mean


def annealing_threshold(schedule: Annealing, fraction: float, num_classes: int) -> float:
    """Return a(t) (1 - 1/C) + 1/C, which rises from chance to certainty.

    Args:
        schedule: linear: a = t; log: 1 - exp(-5 t); exp: exp(5 (t - 1)); none: 1.
        fraction: t, share of training that is over.
        num_classes: C.

    Reference: Xie et al. (UDA), training signal annealing.
    """
    share = {
        "linear": fraction,
        "log": 1 - math.exp(-5 * fraction),
        "exp": math.exp(5 * (fraction - 1)),
        "none": 1.0,
    }[schedule]
    return share * (1 - 1 / num_classes) + 1 / num_classes
