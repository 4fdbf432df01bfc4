"""FlexMatch.

Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling", NeurIPS 2021,
arXiv:2110.08263.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.data.shard import ImageSpec, Shard
from fedssl.methods.base import Batch, Loss, Progress, SemiSupervised, Views
from fedssl.methods.functional import masked_cross_entropy, predict, supervised_loss
from fedssl.slots import Slot, State, Tensors

UNUSED = -1
"""Class of an image that has had no confident prediction yet."""


class FlexMatch(SemiSupervised):
    """FixMatch with a threshold for each class, lower for classes that are learned more slowly.

    Which class each image was last confidently given is remembered at its client between rounds, so that the estimate
    of a class's progress is the client's own.
    """

    threshold: float = Field(
        0.95, ge=0, le=1, description="tau, threshold of the best learned class"
    )

    def views(self) -> Views:
        """Ask for a weak view of the labeled, a weak and a strong one of the unlabeled batch."""
        return Views(("weak",), ("weak", "strong"), self.unlabeled_ratio)

    def slots(self) -> tuple[Slot, ...]:
        """Remember the confident class of every example, at the client."""
        return (Slot("confident", "client"),)

    def init_slot(
        self, name: str, network: nn.Module, spec: ImageSpec, shard: Shard | None
    ) -> Tensors:
        """Start with no confident prediction: classes of shape (n,)."""
        assert shard is not None, "memory by example lives at the client"
        return {"classes": torch.full_like(shard.labels, UNUSED)}

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u mean(1[max q >= tau_c] CE(c, p(strong))), q = p(weak), c = argmax q.

        Reference: equations 5 to 7, 9 and 10, Algorithm 1.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        probs = predict(network, weak)
        confidence, pseudo_labels = probs.max(1)
        classes = state["confident"]["classes"]
        thresholds = self.threshold * flexible_share(classes, probs.shape[1])
        mask = (confidence >= thresholds[pseudo_labels]).to(confidence.dtype)
        unlabeled = masked_cross_entropy(network(strong), pseudo_labels, mask)
        total = supervised + self.unlabeled_weight * unlabeled
        return Loss(
            total,
            pseudo_labels,
            mask,
            {"confident": {"classes": self._remember(batch, classes, confidence, pseudo_labels)}},
        )

    def _remember(
        self, batch: Batch, classes: Tensor, confidence: Tensor, pseudo_labels: Tensor
    ) -> Tensor:
        """Return the memory with the classes of what is confident by tau itself; the last visit in a step counts."""
        ids = batch.unlabeled_ids
        visit = torch.where(
            confidence >= self.threshold, torch.arange(len(ids), device=ids.device), -1
        )
        last = torch.full_like(classes, -1).scatter_reduce(0, ids, visit, "amax")
        return torch.where(last >= 0, pseudo_labels[last.clamp(min=0)], classes)


def flexible_share(classes: Tensor, num_classes: int) -> Tensor:
    """Return b / (2 - b), the share of tau that each class is held to, shape (num_classes,).

    b = s_c / max(max s, unused), s_c the images whose last confident class is c. While most images are unused every
    threshold is low (the paper's threshold warm-up).

    Args:
        classes: Last confident class of every image, or `UNUSED`, int64 (n,).
        num_classes: C.

    Reference: Zhang et al. (FlexMatch), equations 6, 9 and 10.
    """
    counts = torch.bincount(classes - UNUSED, minlength=num_classes + 1)
    unused, learned = counts[0], counts[1:]
    share = learned / torch.maximum(learned.max(), unused).clamp(min=1)
    return share / (2 - share)
