"""A method's loss at several clients, computed in one pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedssl.core.slots import State
from fedssl.fusion.batches import GroupBatch
from fedssl.fusion.stacked import Stacked
from fedssl.methods.base import Batch, Loss, Method, Progress, check_loss


@dataclass(frozen=True)
class GroupLoss:
    """The `Loss` of each of M clients.

    Args:
        total: Each client's loss to minimize, shape (M,).
        pseudo_labels: Classes int64 (M, mu B); None if the method makes no pseudo-labels.
        accepted: Weight in [0, 1] of each pseudo-label, (M, mu B); None without `pseudo_labels`.
        updates: Detached tensors, by slot and name, that replace the clients' state after the step, each (M, *shape).
        numbers: Numbers for the record by name, each (M,).
    """

    total: Tensor
    pseudo_labels: Tensor | None = None
    accepted: Tensor | None = None
    updates: State = field(default_factory=dict)
    numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def check(self, batch: GroupBatch, state: State) -> None:
        """Refuse a loss that breaks the interface at any client; the errors are those of `check_loss`.

        Args:
            batch: The batch that the loss was given.
            state: The state that the loss may update, each tensor (M, *shape).
        """
        flat = Batch(
            labeled=batch.labeled,
            labels=batch.labels.flatten(),
            labeled_ids=batch.labeled_ids.flatten(),
            unlabeled=(),
            unlabeled_ids=batch.unlabeled_ids.flatten(),
            generator=torch.Generator(),
        )
        pseudo = None if self.pseudo_labels is None else self.pseudo_labels.flatten()
        accepted = None if self.accepted is None else self.accepted.flatten()
        numbers = {name: number.sum() for name, number in self.numbers.items()}
        check_loss(Loss(self.total.sum(), pseudo, accepted, self.updates, numbers), flat, state)


def group_loss(
    method: Method, stacked: Stacked, batch: GroupBatch, state: State, progress: Progress
) -> GroupLoss:
    """Return the loss of one step at every client.

    Args:
        method: A method whose loss draws no random numbers.
        stacked: Holds the clients' weights.
        batch: One step's examples of the same clients.
        state: The clients' state, each tensor (M, *shape).
        progress: The step and the round, the same for all clients.
    """
    names: list[str | tuple[str, ...]] = []
    undrawn = torch.Generator()  # vmap refuses a loss that draws from it

    def of_one(
        network: nn.Module,
        labeled: tuple[Tensor, ...],
        labels: Tensor,
        labeled_ids: Tensor,
        unlabeled: tuple[Tensor, ...],
        unlabeled_ids: Tensor,
        own_state: State,
    ) -> tuple[Tensor, ...]:
        own = Batch(labeled, labels, labeled_ids, unlabeled, unlabeled_ids, undrawn)
        loss = method.loss(network, own, own_state, progress)
        parts: dict[str | tuple[str, ...], Tensor] = {"total": loss.total}
        if loss.pseudo_labels is not None and loss.accepted is not None:
            parts |= {"pseudo_labels": loss.pseudo_labels, "accepted": loss.accepted}
        parts |= {("number", name): number for name, number in loss.numbers.items()}
        for slot, tensors in loss.updates.items():
            parts |= {("update", slot, name): tensor for name, tensor in tensors.items()}
        names[:] = [*parts]  # the same names for every client
        return tuple(parts.values())

    outputs = stacked.map(
        *(of_one, batch.labeled, batch.labels, batch.labeled_ids),
        *(batch.unlabeled, batch.unlabeled_ids, state),
    )
    found = dict(zip(names, outputs, strict=True))
    updates: State = {}
    numbers: dict[str, Tensor] = {}
    for key, tensor in found.items():
        match key:
            case ("number", name):
                numbers[name] = tensor
            case ("update", slot, name):
                updates.setdefault(slot, {})[name] = tensor
    pseudo_labels, accepted = found.get("pseudo_labels"), found.get("accepted")
    return GroupLoss(found["total"], pseudo_labels, accepted, updates, numbers)
