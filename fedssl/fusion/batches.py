"""The batches of several clients side by side: each client's draws are its own, and one call makes all views."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedssl.augment.base import DrawnAugmentation
from fedssl.augment.policy import PLAIN, Augment
from fedssl.core.slots import Tensors
from fedssl.data.shard import Shard, as_float
from fedssl.methods.base import View, Views
from fedssl.training.batches import IMAGES_AT_ONCE, shuffled_passes

Stream = Callable[[str], torch.Generator]
"""A function that makes a client's generator for a purpose."""


@dataclass(frozen=True)
class GroupBatch:
    """One step's examples of M clients, augmented and normalized; a client's examples are in the order of its `Batch`.

    Args:
        labeled: Views of the labeled batches, each (M, B, C, H, W); B is 0 if no client has a label.
        labels: Classes of the labeled batches, int64 (M, B).
        labeled_ids: Rows of the labeled batches in the clients' shards, int64 (M, B).
        unlabeled: Views of the unlabeled batches, each (M, mu B, C, H, W).
        unlabeled_ids: Rows of the unlabeled batches in the clients' shards, int64 (M, mu B).
        hidden: Whether each example of the unlabeled batches carries no label, (M, mu B).
        truth: True class of each example of the unlabeled batches, int64 (M, mu B); -1 where nobody knows it.
    """

    labeled: tuple[Tensor, ...]
    labels: Tensor
    labeled_ids: Tensor
    unlabeled: tuple[Tensor, ...]
    unlabeled_ids: Tensor
    hidden: Tensor
    truth: Tensor


@dataclass(frozen=True)
class _Order:
    """Examples of every step of every client: ids in the client's shard, and rows among all images, (M, steps, n)."""

    ids: Tensor
    rows: Tensor


class GroupLoader:
    """Draw the batches of one round at several clients; each client gets the batches that `BatchLoader` would give it.

    Args:
        shards: The clients' examples. Either all clients have labels, or none has.
        views: Views that the method asks for.
        augment: The augmentation of each view; none of them learns.
        batch_size: B, labeled examples per step and client.
        num_steps: Steps of the round.
        streams: One stream per client.

    Raises:
        ValueError: Some clients' images are bytes and others' are floats.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        views: Views,
        augment: Augment,
        batch_size: int,
        num_steps: int,
        streams: Sequence[Stream],
    ) -> None:
        if len({shard.images.dtype for shard in shards}) > 1:
            raise ValueError("images of different types cannot be put into one batch")
        self._spec = shards[0].spec
        self._augment = augment
        self._num_steps = num_steps
        self._streams = streams
        self._images = torch.cat([shard.images for shard in shards])
        self._labels = torch.cat([shard.labels for shard in shards])
        self._truth = torch.cat([shard.truth for shard in shards])
        ends = torch.tensor([len(shard) for shard in shards], device=self._images.device).cumsum(0)
        self._starts = (ends - ends.diff(prepend=ends.new_zeros(1))).view(-1, 1, 1)
        self._labeled = self._order(
            [shard.labeled if views.labeled else shard.labeled[:0] for shard in shards],
            batch_size,
            "order/labeled",
        )
        self._unlabeled = self._order(
            [shard.unlabeled if views.unlabeled else shard.unlabeled[:0] for shard in shards],
            batch_size * views.ratio,
            "order/unlabeled",
        )
        self._labeled_views = self._generators(views.labeled, "augment/labeled")
        self._unlabeled_views = self._generators(views.unlabeled, "augment/unlabeled")

    def __iter__(self) -> Iterator[GroupBatch]:
        labeled = self._shown(self._labeled.rows, self._labeled_views)
        unlabeled = self._shown(self._unlabeled.rows, self._unlabeled_views)
        for step in range(self._num_steps):
            rows = self._unlabeled.rows[:, step]
            yield GroupBatch(
                labeled=next(labeled),
                labels=self._labels[self._labeled.rows[:, step]],
                labeled_ids=self._labeled.ids[:, step],
                unlabeled=next(unlabeled),
                unlabeled_ids=self._unlabeled.ids[:, step],
                hidden=self._labels[rows] < 0,
                truth=self._truth[rows],
            )

    def _order(self, pools: Sequence[Tensor], per_step: int, purpose: str) -> _Order:
        """Draw the examples of each step from the clients' pools of ids; empty pools give no examples."""
        draws = self._num_steps * per_step
        drawn = [
            pool[shuffled_passes(len(pool), draws, stream(purpose))]
            for pool, stream in zip(pools, self._streams, strict=True)
        ]
        ids = torch.stack(drawn).view(len(pools), self._num_steps, -1 if len(drawn[0]) else 0)
        return _Order(ids, ids + self._starts)

    def _generators(
        self, views: tuple[View, ...], purpose: str
    ) -> list[tuple[View, list[torch.Generator]]]:
        return [
            (view, [stream(f"{purpose}/{i}") for stream in self._streams])
            for i, view in enumerate(views)
        ]

    def _shown(
        self, rows: Tensor, views: list[tuple[View, list[torch.Generator]]]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the views of each step.

        Random numbers are drawn for as many steps at once as `BatchLoader` draws them for one client, so they are the
        same. The number of steps that are then shown in one call cannot change a view.
        """
        num_clients, _, per_step = rows.shape
        at_once = max(1, IMAGES_AT_ONCE // max(1, num_clients * per_step))
        for drawn in torch.split(rows, max(1, IMAGES_AT_ONCE // max(1, per_step)), dim=1):
            draws = [self._draw(view, drawn, generators) for view, generators in views]
            for start in range(0, drawn.shape[1], at_once):
                steps = slice(start, start + at_once)
                yield from self._show(drawn[:, steps], views, [_cut(d, steps) for d in draws])

    def _draw(self, view: View, rows: Tensor, generators: list[torch.Generator]) -> Tensors:
        """Return the random draws of some steps of a view, by name, each (M, steps, n, ...)."""
        if view == PLAIN or rows.numel() == 0:
            return {}
        policy, flips = self._augment.policy_of(view), self._spec.flips
        if isinstance(policy, DrawnAugmentation):
            count = rows[0].numel()
            each = [policy.draw(count, self._spec.shape, g, flips=flips) for g in generators]
        else:
            each = [
                {"views": policy(self._images[own.flatten()], generator, flips=flips)}
                for own, generator in zip(rows, generators, strict=True)
            ]
        return {
            name: torch.unflatten(torch.stack([draws[name] for draws in each]), 1, rows.shape[1:])
            for name in each[0]
        }

    def _show(
        self,
        rows: Tensor,
        views: list[tuple[View, list[torch.Generator]]],
        draws: list[Tensors],
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the views of some steps, one step after the other; `rows` has shape (M, steps, n)."""
        images = self._images[rows.flatten()] if views else self._images[:0]
        shown = [
            self._spec.normalize(self._view(view, images, drawn)).view(
                *rows.shape, *self._spec.shape
            )
            for (view, _), drawn in zip(views, draws, strict=True)
        ]
        for step in range(rows.shape[1]):
            yield tuple(view[:, step] for view in shown)

    def _view(self, view: View, images: Tensor, draws: Tensors) -> Tensor:
        if view == PLAIN or len(images) == 0:
            return as_float(images)
        flat = {name: drawn.flatten(0, 2) for name, drawn in draws.items()}
        policy = self._augment.policy_of(view)
        return (
            policy.apply(images, flat) if isinstance(policy, DrawnAugmentation) else flat["views"]
        )


def _cut(draws: Tensors, steps: slice) -> Tensors:
    return {name: drawn[:, steps] for name, drawn in draws.items()}
