"""A shard cut into steps, every example shown in the views that a method asks for."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fedssl.augment.policy import Augment
from fedssl.data.shard import Shard
from fedssl.methods.base import Batch, View, Views

IMAGES_AT_ONCE = 1024
"""Views are made for several steps in one call, up to about this many images; a constant, so that the draws are too."""


def shuffled_passes(num_items: int, num_draws: int, generator: torch.Generator) -> Tensor:
    """Return `num_draws` positions below `num_items`: whole shuffled passes, one after the other.

    Args:
        num_items: Size of the pool; 0 gives an empty answer.
        num_draws: How many positions.
        generator: Source of the shuffles.
    """
    if num_items == 0:
        return torch.empty(0, dtype=torch.int64, device=generator.device)
    passes = -(-num_draws // num_items)
    keys = torch.rand(passes, num_items, generator=generator, device=generator.device)
    return keys.argsort(dim=1).flatten()[:num_draws]


class BatchLoader:
    """Draw the batches of one round at one client.

    Labeled and unlabeled order and every view have streams of their own: a method that asks for fewer views gets the
    same labeled batches.

    Args:
        shard: The client's examples.
        views: What the method asks for.
        augment: What weak and strong mean.
        batch_size: B, labeled examples a step.
        num_steps: Steps of the round.
        stream: Makes the generator for a purpose.
    """

    def __init__(
        self,
        shard: Shard,
        views: Views,
        augment: Augment,
        batch_size: int,
        num_steps: int,
        stream: Callable[[str], torch.Generator],
    ) -> None:
        self._shard = shard
        self._augment = augment
        self._num_steps = num_steps
        self._labeled = self._order(
            shard.labeled if views.labeled else shard.labeled[:0],
            batch_size,
            stream("order/labeled"),
        )
        self._unlabeled = self._order(
            shard.unlabeled if views.unlabeled else shard.unlabeled[:0],
            batch_size * views.ratio,
            stream("order/unlabeled"),
        )
        self._labeled_views = [
            (view, stream(f"augment/labeled/{i}")) for i, view in enumerate(views.labeled)
        ]
        self._unlabeled_views = [
            (view, stream(f"augment/unlabeled/{i}")) for i, view in enumerate(views.unlabeled)
        ]
        per_step = batch_size * max(1, views.ratio if views.unlabeled else 1)
        self._steps_at_once = max(1, IMAGES_AT_ONCE // per_step)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self._num_steps, self._steps_at_once):
            stop = min(start + self._steps_at_once, self._num_steps)
            yield from self._chunk(start, stop)

    def _order(self, pool: Tensor, per_step: int, generator: torch.Generator) -> Tensor:
        """Return ids for every step, shape (num_steps, per_step); (num_steps, 0) from an empty pool."""
        positions = shuffled_passes(len(pool), self._num_steps * per_step, generator)
        return pool[positions].view(self._num_steps, per_step if len(pool) else 0)

    def _chunk(self, start: int, stop: int) -> Iterator[Batch]:
        labeled_ids = self._labeled[start:stop]
        unlabeled_ids = self._unlabeled[start:stop]
        labeled = self._show(labeled_ids, self._labeled_views)
        unlabeled = self._show(unlabeled_ids, self._unlabeled_views)
        for i in range(stop - start):
            yield Batch(
                labeled=tuple(view[i] for view in labeled),
                labels=self._shard.labels[labeled_ids[i]],
                labeled_ids=labeled_ids[i],
                unlabeled=tuple(view[i] for view in unlabeled),
                unlabeled_ids=unlabeled_ids[i],
            )

    def _show(self, ids: Tensor, views: list[tuple[View, torch.Generator]]) -> list[Tensor]:
        """Return each view of the examples, shape (steps, per_step, C, H, W)."""
        spec = self._shard.spec
        if not views:
            return []
        images = self._shard.images[ids.flatten()].to(torch.float32).div_(255)
        shown = []
        for view, generator in views:
            seen = images
            if view != "plain" and len(images):
                policy = self._augment.weak if view == "weak" else self._augment.strong
                seen = policy(images, generator, flips=spec.flips)
            shown.append(spec.normalize(seen).view(*ids.shape, *spec.shape))
        return shown
