"""SoftMatch.

Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning", ICLR 2023,
arXiv:2301.10921.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import ChangingScope, Slot, State, Tensors
from fedssl.methods.base import Batch, Fresh, Loss, Progress
from fedssl.methods.functional import (
    align_distribution,
    masked_cross_entropy,
    running_mean,
    supervised_loss,
)
from fedssl.methods.labeling import PseudoLabeling


class SoftMatch(PseudoLabeling):
    """FixMatch with a weight in place of the threshold: a truncated Gaussian of the confidence.

    The class marginal and the first two moments of the doubt 1 - max p are running averages, so the mean of the
    clients' averages is the cohort's. Deviations: the paper averages the variance of the confidence within a batch. A
    mean of such variances over clients would leave out how far the clients are apart. Here the variance follows from
    the two moments. It is the total variance within batches, between steps and between clients, so it is larger than
    the paper's. The moments are those of the doubt, because the square of a confidence near 1 loses all digits. As in
    our FreeMatch, the averages are the plain mean of the first steps and then forget over about 100 steps (decay 0.99);
    the paper's averages forget over about 1,000 steps (decay 0.999).
    """

    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="decay of the statistics, per step; 0.999 in the paper"
    )
    num_sigmas: float = Field(
        2.0,
        gt=0,
        description="factor by which the Gaussian is narrower than the spread of the confidence",
    )
    uniform_alignment: bool = Field(
        True,
        description="whether predictions aligned to even classes give the weights (the paper's UA)",
    )
    statistics_scope: ChangingScope = Field(
        "server",
        description="where the statistics live: they start anew each round (reset), stay with the client, "
        "or are averaged by the server",
    )

    def slots(self) -> tuple[Slot, ...]:
        """Keep the running statistics in the scope that the experiment says."""
        return (*super().slots(), Slot("statistics", self.statistics_scope))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start at chance, after no step: confidence 1/C, variance 1, every class with probability 1/C."""
        if name != "statistics":
            return super().init_slot(name, fresh)
        num_classes, device = fresh.spec.num_classes, fresh.device
        chance = torch.full((num_classes,), 1 / num_classes, device=device)
        return {
            "doubt": 1 - chance[0],
            "doubt_square": (1 - chance[0]).square() + 1,
            "probs": chance,
            "steps": torch.zeros((), device=device),
        }

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u mean(w(q) CE(argmax q, p(strong))), q = p(weak).

        Reference: equations 5 to 10.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        probs = self.guess(network, weak, state)
        before = state["statistics"]
        steps, decay = before["steps"], self.ema_decay
        statistics = running_mean(before, {"probs": probs.mean(0)}, steps, decay)
        confidence = self._align_if_wanted(probs, statistics["probs"]).max(1).values
        statistics |= running_mean(before, _moments(1 - confidence), steps, decay)
        variance = statistics["doubt_square"] - statistics["doubt"].square()
        narrowed = variance.clamp(min=1e-12) / self.num_sigmas**2
        weights = gaussian_weight(confidence, 1 - statistics["doubt"], narrowed)
        pseudo_labels = probs.argmax(1)
        unlabeled = masked_cross_entropy(network(strong), pseudo_labels, weights)
        total = supervised + self.unlabeled_weight * unlabeled
        updates = {"statistics": statistics | {"steps": steps + 1}}
        numbers = {"mean_confidence": 1 - statistics["doubt"], "variance": variance}
        return Loss(total, pseudo_labels, weights, updates, numbers)

    def _align_if_wanted(self, probs: Tensor, marginal: Tensor) -> Tensor:
        """Return the predictions whose confidence gives the weights: aligned to even classes, or as they are."""
        if not self.uniform_alignment:
            return probs
        return align_distribution(probs, torch.full_like(marginal, 1 / len(marginal)), marginal)


def _moments(doubt: Tensor) -> Tensors:
    """Return a batch's mean and its second moment, which is computed from the unbiased variance."""
    mean = doubt.mean()
    variance = doubt.var() if len(doubt) > 1 else torch.zeros_like(mean)
    return {"doubt": mean, "doubt_square": variance + mean.square()}


def gaussian_weight(confidence: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return exp(-(max p - mu)^2 / (2 s^2)) below mu and 1 from mu on, shape (B,).

    Args:
        confidence: Highest probability of each example, in [0, 1], shape (B,).
        mean, variance: mu and s^2, scalars.

    Reference: Chen et al. (SoftMatch), equation 6.
    """
    short = (confidence - mean).clamp(max=0)
    return torch.exp(-short.square() / (2 * variance))
