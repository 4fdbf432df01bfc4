"""A method's loss at several clients in one pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedssl.fusion.batches import GroupBatch
from fedssl.fusion.stacked import Stacked
from fedssl.methods.base import Batch, Loss, Method, Progress, check_loss


@dataclass(frozen=True)
class GroupLoss:
    """What a loss says of each of M clients; without updates, for fused clients keep no state.

    Args:
        total: The scalar that each descends, shape (M,).
        pseudo_labels: int64 (M, mu B), if the method took any.
        accepted: Weight in [0, 1] it gave each, (M, mu B); with `pseudo_labels`.
        numbers: What it records, by name, each (M,).
    """

    total: Tensor
    pseudo_labels: Tensor | None = None
    accepted: Tensor | None = None
    numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def check(self, batch: GroupBatch) -> None:
        """Refuse what a method's loss must not say of any client; raises as `check_loss` does."""
        flat = Batch(
            labeled=(),
            labels=batch.labels.flatten(),
            labeled_ids=batch.labeled_ids.flatten(),
            unlabeled=(),
            unlabeled_ids=batch.unlabeled_ids.flatten(),
            generator=torch.Generator(),
        )
        pseudo = None if self.pseudo_labels is None else self.pseudo_labels.flatten()
        accepted = None if self.accepted is None else self.accepted.flatten()
        numbers = {name: number.sum() for name, number in self.numbers.items()}
        check_loss(Loss(self.total.sum(), pseudo, accepted, numbers=numbers), flat, {})


def group_loss(
    method: Method, stacked: Stacked, batch: GroupBatch, progress: Progress
) -> GroupLoss:
    """Return the loss of one step at every client.

    Args:
        method: Its loss draws nothing and knows no state.
        stacked: Holds the clients' weights.
        batch: Of the same clients.
        progress: Where they all stand.
    """
    names: list[str] = []
    undrawn = torch.Generator()  # vmap refuses whoever draws from it

    def of_one(
        network: nn.Module,
        labeled: tuple[Tensor, ...],
        labels: Tensor,
        labeled_ids: Tensor,
        unlabeled: tuple[Tensor, ...],
        unlabeled_ids: Tensor,
    ) -> tuple[Tensor, ...]:
        own = Batch(labeled, labels, labeled_ids, unlabeled, unlabeled_ids, undrawn)
        loss = method.loss(network, own, {}, progress)
        parts = {"total": loss.total}
        if loss.pseudo_labels is not None and loss.accepted is not None:
            parts |= {"pseudo_labels": loss.pseudo_labels, "accepted": loss.accepted}
        names[:] = [*parts, *loss.numbers]  # of every client the same
        return (*parts.values(), *loss.numbers.values())

    outputs = stacked.map(
        of_one, batch.labeled, batch.labels, batch.labeled_ids, batch.unlabeled, batch.unlabeled_ids
    )
    found = dict(zip(names, outputs, strict=True))
    parts = (found.pop("total"), found.pop("pseudo_labels", None), found.pop("accepted", None))
    return GroupLoss(*parts, numbers=found)
