"""FlexMatch.

Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling", NeurIPS 2021,
arXiv:2110.08263.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import Slot, State, Tensors
from fedssl.methods.base import Batch, Fresh, Learner, Loss, Progress
from fedssl.methods.functional import masked_cross_entropy, supervised_loss
from fedssl.methods.labeling import PseudoLabeling

UNUSED = -1
"""Class of an image that has had no confident prediction yet."""


class FlexMatch(PseudoLabeling):
    """FixMatch with a threshold for each class, which is lower for classes that are learned more slowly.

    Each client remembers, between rounds, the class that each image was last confidently given. The paper judges by its
    whole data set how far a class is learned; here the cohort of the last round stands in for the data set (so that the
    whole first round runs at a threshold of 0). If one skewed client judged, a class that it does not hold would look
    like a class that is never learned, and would get a threshold of 0.
    """

    threshold: float = Field(
        0.95, ge=0, le=1, description="tau, threshold of the best learned class"
    )
    status_scope: Literal["client", "server"] = Field(
        "server",
        description="whose images say how far each class is learned: the client's own images alone, or "
        "the images of the last round's cohort (server)",
    )

    def slots(self) -> tuple[Slot, ...]:
        """Keep every example's confident class at the client, and the cohort's shares if the scope is the server."""
        shared = (Slot("status", "server"),) if self.status_scope == "server" else ()
        return (*super().slots(), Slot("confident", "client"), *shared)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start with no confident prediction: classes of shape (n,); shares of shape (1 + num_classes,)."""
        if name == "status":
            shares = torch.zeros(1 + fresh.spec.num_classes, device=fresh.device)
            shares[0] = 1
            return {"shares": shares}
        if name != "confident":
            return super().init_slot(name, fresh)
        assert fresh.shard is not None, "memory by example lives at the client"
        return {"classes": torch.full_like(fresh.shard.labels, UNUSED)}

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u mean(1[max q >= tau_c] CE(c, p(strong))), q = p(weak), c = argmax q.

        Reference: section 3, Algorithm 1.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        probs = self.guess(network, weak, state)
        confidence, pseudo_labels = probs.max(1)
        classes = state["confident"]["classes"]
        if self.status_scope == "server":
            shares = state["status"]["shares"]
        else:
            shares = class_status(classes, probs.shape[1])
        thresholds = self.threshold * flexible_share(shares)
        mask = (confidence >= thresholds[pseudo_labels]).to(confidence.dtype)
        unlabeled = masked_cross_entropy(network(strong), pseudo_labels, mask)
        remembered = self._remember(batch, classes, confidence, pseudo_labels)
        return Loss(
            supervised + self.unlabeled_weight * unlabeled,
            pseudo_labels,
            mask,
            {"confident": {"classes": remembered}},
            {"threshold": thresholds.mean(), "lowest_threshold": thresholds.min()},
        )

    def end(self, learner: Learner) -> None:
        """Send the server the share of each class among the client's own images."""
        if self.status_scope == "server":
            shares = learner.state["status"]["shares"]
            classes = learner.state["confident"]["classes"]
            learner.state["status"]["shares"] = class_status(classes, len(shares) - 1)

    def _remember(
        self, batch: Batch, classes: Tensor, confidence: Tensor, pseudo_labels: Tensor
    ) -> Tensor:
        """Return the memory, updated by the classes of predictions whose confidence reaches tau itself.

        If an image has several confident predictions in one step, the last of them counts.
        """
        ids = batch.unlabeled_ids
        order = torch.arange(len(ids), device=ids.device)
        visit = torch.where(confidence >= self.threshold, order, -1)
        last = torch.full_like(classes, -1).scatter_reduce(0, ids, visit, "amax")
        return torch.where(last >= 0, pseudo_labels[last.clamp(min=0)], classes)


def class_status(classes: Tensor, num_classes: int) -> Tensor:
    """Return the share of unused images, then the share of each class, shape (1 + num_classes,).

    Args:
        classes: Last confident class of every image, or `UNUSED`, int64 (n,).
        num_classes: C.
    """
    counts = torch.bincount(classes - UNUSED, minlength=num_classes + 1)
    return counts / max(1, len(classes))


def flexible_share(shares: Tensor) -> Tensor:
    """Return b / (2 - b), the share of tau that is each class's threshold, shape (num_classes,).

    b = s_c / max(max s, unused). While most images are unused every threshold is low (the paper's threshold warm-up).

    Args:
        shares: As `class_status` returns them; a common factor changes nothing.

    Reference: Zhang et al. (FlexMatch), section 3: normalization, threshold warm-up, non-linear mapping.
    """
    unused, learned = shares[0], shares[1:]
    share = learned / torch.maximum(learned.max(), unused).clamp(min=1e-12)
    return share / (2 - share)
