"""The batches of a round: a shard cut into steps, with each example in the views that a method asks for."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fedssl.augment.base import LearnedAugmentation, Probe
from fedssl.augment.policy import PLAIN, Augment, slot_of
from fedssl.core.slots import State
from fedssl.data.shard import ImageSpec, Shard, as_float
from fedssl.methods.base import Batch, Pools, View, Views

IMAGES_AT_ONCE = 1024
"""One call makes the views of several steps, up to about this many images; it is constant to fix the draws."""


Draw = Callable[[int, int, torch.Generator], Tensor]
"""A function that draws places in a pool; see `shuffled_passes`."""


def shuffled_passes(num_items: int, num_draws: int, generator: torch.Generator) -> Tensor:
    """Return `num_draws` positions below `num_items`, from whole shuffled passes one after the other.

    Args:
        num_items: Size of the pool. If it is 0, no position is returned.
        num_draws: Number of positions.
        generator: Source of the shuffles.

    Returns:
        int64, shape (num_draws,); shape (0,) from an empty pool.
    """
    if num_items == 0:
        return torch.empty(0, dtype=torch.int64, device=generator.device)
    passes = -(-num_draws // num_items)
    keys = torch.rand(passes, num_items, generator=generator, device=generator.device)
    return keys.argsort(dim=1).flatten()[:num_draws]


def draws_with_replacement(num_items: int, num_draws: int, generator: torch.Generator) -> Tensor:
    """Return `num_draws` independent, uniform positions below `num_items`; the arguments of `shuffled_passes`."""
    if num_items == 0:
        return torch.empty(0, dtype=torch.int64, device=generator.device)
    return torch.randint(num_items, (num_draws,), generator=generator, device=generator.device)


def default_pools(shard: Shard) -> Pools:
    """Return the pools of a method that chooses none: all labeled examples, and all examples as unlabeled ones."""
    return Pools(shard.labeled, shard.unlabeled)


class BatchLoader:
    """Draw the batches of one round at one client.

    The order of labeled examples, the order of unlabeled examples and every view have a random stream each. So a method
    that asks for fewer views gets the same labeled batches.

    Args:
        shard: The client's examples.
        pools: Examples that the batches are drawn from.
        views: Views that the method asks for.
        augment: The augmentation of each view.
        state: Contents of all slots. What augmentations have learned is read from it anew at each step.
        batch_size: B, labeled examples per step.
        num_steps: Steps of the round.
        stream: Makes the generator for a purpose.
    """

    def __init__(
        self,
        shard: Shard,
        pools: Pools,
        views: Views,
        augment: Augment,
        state: State,
        batch_size: int,
        num_steps: int,
        stream: Callable[[str], torch.Generator],
    ) -> None:
        self._shard = shard
        self._augment = augment
        self._state = state
        self._generator = stream("loss")
        shown = {slot_of(view) for view in (*views.labeled, *views.unlabeled)}
        self._probes = {slot: stream(f"probe/{slot}") for slot in augment.learned if slot in shown}
        self._num_steps = num_steps
        draw_labeled = shuffled_passes if pools.replacement == "none" else draws_with_replacement
        draw_unlabeled = draws_with_replacement if pools.replacement == "both" else shuffled_passes
        labeled = pools.labeled if views.labeled else pools.labeled[:0]
        unlabeled = pools.unlabeled if views.unlabeled else pools.unlabeled[:0]
        # A labeled example is drawn by its place in the pool, because the pool may hold targets in the same order.
        places = self._order(draw_labeled, len(labeled), batch_size, stream("order/labeled"))
        targets = shard.labels[labeled] if pools.targets is None else pools.targets
        self._labeled, self._targets = labeled[places], targets[places]
        per_step = batch_size * views.ratio
        places = self._order(draw_unlabeled, len(unlabeled), per_step, stream("order/unlabeled"))
        self._unlabeled = unlabeled[places]
        self._labeled_views = [
            (view, stream(f"augment/labeled/{i}")) for i, view in enumerate(views.labeled)
        ]
        self._unlabeled_views = [
            (view, stream(f"augment/unlabeled/{i}")) for i, view in enumerate(views.unlabeled)
        ]

    def __iter__(self) -> Iterator[Batch]:
        labeled = self._shown(self._labeled, self._labeled_views)
        unlabeled = self._shown(self._unlabeled, self._unlabeled_views)
        for step in range(self._num_steps):
            labeled_ids = self._labeled[step]
            yield Batch(
                labeled=next(labeled),
                labels=self._targets[step],
                labeled_ids=labeled_ids,
                unlabeled=next(unlabeled),
                unlabeled_ids=self._unlabeled[step],
                generator=self._generator,
                probes=self._probed(labeled_ids),
            )

    def _order(self, draw: Draw, size: int, per_step: int, generator: torch.Generator) -> Tensor:
        """Return places in a pool for every step, shape (num_steps, per_step); (num_steps, 0) for an empty pool."""
        places = draw(size, self._num_steps * per_step, generator)
        return places.view(self._num_steps, per_step if size else 0)

    def _shown(
        self, ids: Tensor, views: list[tuple[View, torch.Generator]]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the views of each step; one call makes them for several steps.

        The number of steps per call depends on the size of this kind of batch alone. If labeled and unlabeled batches
        shared it, more unlabeled images would shift the labeled draws.
        """
        at_once = max(1, IMAGES_AT_ONCE // max(1, ids.shape[1]))
        if any(slot_of(view) in self._probes for view, _ in views):
            at_once = 1  # the next step's views depend on what this step learns
        for chunk in torch.split(ids, at_once):
            shown = self._show(chunk, views)
            for step in range(len(chunk)):
                yield tuple(view[step] for view in shown)

    def _show(self, ids: Tensor, views: list[tuple[View, torch.Generator]]) -> list[Tensor]:
        """Return each view of the examples, normalized, shape (steps, per_step, C, H, W)."""
        spec = self._shard.spec
        if not views:
            return []
        images = self._shard.images[ids.flatten()]
        shown = []
        for view, generator in views:
            seen = show_view(view, images, self._augment, self._state, generator, spec)
            shown.append(seen.view(*ids.shape, *spec.shape))
        return shown

    def _probed(self, labeled_ids: Tensor) -> dict[str, Probe]:
        """Return a probe for each augmentation that learns: the labeled batch under its random choices."""
        if len(labeled_ids) == 0 or not self._probes:
            return {}
        flips = self._shard.spec.flips
        images = self._shard.images[labeled_ids]
        with in_full_precision(images.device):
            return {
                slot: self._augment.learned[slot].probe(images, generator, flips=flips)
                for slot, generator in self._probes.items()
            }


def show_view(
    view: View,
    images: Tensor,
    augment: Augment,
    state: State,
    generator: torch.Generator,
    spec: ImageSpec,
) -> Tensor:
    """Return one view of images, normalized, shape (B, C, H, W).

    Args:
        view: How the images are shown.
        images: uint8, shape (B, C, H, W).
        augment: The augmentation of each view.
        state: Contents of all slots, among them what augmentations have learned.
        generator: Source of the augmentation's draws.
        spec: Normalization of the images, and whether they may be mirrored.
    """
    if view == PLAIN or len(images) == 0:
        return spec.normalize(as_float(images))
    policy = augment.policy_of(view)
    with in_full_precision(images.device):
        if isinstance(policy, LearnedAugmentation):
            seen = policy.show(images, generator, state[slot_of(view)], flips=spec.flips)
        else:
            seen = policy(images, generator, flips=spec.flips)
    return spec.normalize(seen)


def in_full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a block in which autocast has no effect: half precision is for networks and not for views."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def show_in_order(
    view: View,
    ids: Tensor,
    shard: Shard,
    augment: Augment,
    state: State,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the ids (B,) and one view (B, C, H, W) of some examples of a shard, in order; see `show_view`."""
    for chunk in torch.split(ids, IMAGES_AT_ONCE):
        yield chunk, show_view(view, shard.images[chunk], augment, state, generator, shard.spec)


def plain_batches(shard: Shard) -> Iterator[Tensor]:
    """Yield all images of a shard without augmentation, normalized, shape (B, C, H, W)."""
    for images in torch.split(shard.images, IMAGES_AT_ONCE):
        yield shard.spec.normalize(as_float(images))
