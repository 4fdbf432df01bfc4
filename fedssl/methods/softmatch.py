"""SoftMatch.

Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning", ICLR 2023,
arXiv:2301.10921.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.data.shard import ImageSpec, Shard
from fedssl.methods.base import Batch, Loss, Progress, SemiSupervised, Views
from fedssl.methods.functional import (
    align_distribution,
    masked_cross_entropy,
    predict,
    supervised_loss,
)
from fedssl.slots import Scope, Slot, State, Tensors


class SoftMatch(SemiSupervised):
    """FixMatch with a weight in place of the threshold: a truncated Gaussian of the confidence.

    Mean, second moment and class marginal are running averages, so that the mean of the clients' is the cohort's; the
    paper keeps the variance itself, which does not average.
    """

    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the statistics, per step")
    num_sigmas: float = Field(
        2.0, gt=0, description="the Gaussian is this much narrower than the confidence's own spread"
    )
    uniform_alignment: bool = Field(
        True, description="weigh by predictions aligned to even classes (the paper's UA)"
    )
    statistics_scope: Scope = Field(
        "server",
        description="statistics start anew each round, stay with the client, or are averaged "
        "by the server",
    )

    def views(self) -> Views:
        """Ask for a weak view of the labeled, a weak and a strong one of the unlabeled batch."""
        return Views(("weak",), ("weak", "strong"), self.unlabeled_ratio)

    def slots(self) -> tuple[Slot, ...]:
        """Keep the running statistics where the experiment says."""
        return (Slot("statistics", self.statistics_scope),)

    def init_slot(
        self, name: str, network: nn.Module, spec: ImageSpec, shard: Shard | None
    ) -> Tensors:
        """Start at chance: mean 1/C, variance 1, every class with probability 1/C."""
        device = next(network.parameters()).device
        chance = torch.full((spec.num_classes,), 1 / spec.num_classes, device=device)
        return {
            "mean": chance[0].clone(),
            "mean_square": chance[0].square() + 1,
            "probs": chance,
        }

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u mean(w(q) CE(argmax q, p(strong))), q = p(weak).

        Reference: equations 5 to 10.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        probs = predict(network, weak).float()
        marginal = torch.lerp(probs.mean(0), state["statistics"]["probs"], self.ema_decay)
        uniform = torch.full_like(marginal, 1 / len(marginal))
        judged = align_distribution(probs, uniform, marginal) if self.uniform_alignment else probs
        confidence = judged.max(1).values
        statistics = {"probs": marginal} | self._moments(state["statistics"], confidence)
        variance = (statistics["mean_square"] - statistics["mean"].square()).clamp(min=1e-12)
        weights = gaussian_weight(confidence, statistics["mean"], variance / self.num_sigmas**2)
        pseudo_labels = probs.argmax(1)
        unlabeled = masked_cross_entropy(network(strong), pseudo_labels, weights)
        total = supervised + self.unlabeled_weight * unlabeled
        return Loss(total, pseudo_labels, weights, {"statistics": statistics})

    def _moments(self, statistics: Tensors, confidence: Tensor) -> Tensors:
        """Return the moved mean and second moment of the confidence; the variance of a batch is the unbiased one."""
        mean = confidence.mean()
        variance = confidence.var() if len(confidence) > 1 else torch.zeros_like(mean)
        now = {"mean": mean, "mean_square": variance + mean.square()}
        return {k: torch.lerp(v, statistics[k], self.ema_decay) for k, v in now.items()}


def gaussian_weight(confidence: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return exp(-(max p - mu)^2 / (2 s^2)) below mu and 1 from mu on, shape (B,).

    Args:
        confidence: Shape (B,), in [0, 1].
        mean, variance: mu and s^2, scalars.

    Reference: Chen et al. (SoftMatch), equation 6.
    """
    short = (confidence - mean).clamp(max=0)
    return torch.exp(-short.square() / (2 * variance))
