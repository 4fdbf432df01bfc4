"""The groups of clients that are fused: the recipe and sizes decide, and no image is read and no time is measured.

So the groups are the same on every machine, and so are the bits.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fedssl.training.recipe import Recipe

LARGEST = 32
"""No group has more clients: a group of this size has most of the gain, and larger groups outgrow a core's cache."""

GROUP_STEP = 160_000_000
"""A step of a group takes at most about this many multiplications; beyond, arithmetic fills a core without fusing."""

LEAST_ROOM = 8
"""Clients are fused if a step of so many of them is within `GROUP_STEP`; others would gain less than half."""

SHORT_ROUND = 20_000_000
"""A client whose round takes at most this many multiplications is short: dividing such clients among workers gains little."""

FEWEST_GROUPS = 8
"""A cohort is cut into at least this many groups, so that several workers have something to do."""

SMALLEST_CUT = 5
"""Short clients are fused in groups of this size, even if a cohort then has fewer groups than `FEWEST_GROUPS`."""

SMALLEST = 4
"""Smaller groups gain too little, so clients are not fused into them by the rule of `group_size`."""


class FusionKey(NamedTuple):
    """What clients must have in common to be fused.

    Args:
        num_steps: Number of steps of a round.
        is_labeled: Whether they have labels that their steps show.
    """

    num_steps: int
    is_labeled: bool


def fusion_key(recipe: Recipe, num_labeled: int, num_examples: int) -> FusionKey:
    """Return the key of a client with these numbers of labeled and of all images."""
    is_labeled = num_labeled > 0 and bool(recipe.method.views().labeled)
    return FusionKey(recipe.num_steps(num_labeled, num_examples), is_labeled)


def group_size(step: float, num_steps: int, cohort: int) -> int:
    """Return how many clients of a kind are fused at most by ``engine.fuse = "auto"``; 0: each trains alone.

    Args:
        step: Multiplications of one client's step.
        num_steps: Steps of its round.
        cohort: m, clients that are asked in a round.
    """
    room = int(GROUP_STEP // max(step, 1.0))
    size = min(room, LARGEST, cohort, share_of(cohort, is_short=step * num_steps <= SHORT_ROUND))
    return size if room >= LEAST_ROOM and size >= SMALLEST else 0


def share_of(cohort: int, *, is_short: bool) -> int:
    """Return the largest group that leaves enough groups for several workers.

    Args:
        cohort: m, clients that are asked in a round.
        is_short: Whether a client's round is so short that workers gain little.
    """
    return max(SMALLEST_CUT if is_short else 1, -(-cohort // FEWEST_GROUPS))


def cut_groups(keys: Sequence[FusionKey], largest: Callable[[FusionKey], int]) -> list[list[int]]:
    """Cut the places 0, 1, ... of a cohort into groups of equal keys, in order.

    Neighbors with equal keys are cut into as few groups as possible, of nearly equal size.

    Args:
        keys: The `fusion_key` of each place.
        largest: Largest size of a group with a key; below 2: each of these clients is a group of its own.
    """
    cut: list[list[int]] = []
    for key, run in itertools.groupby(range(len(keys)), key=lambda place: keys[place]):
        places = list(run)
        count = -(-len(places) // max(1, largest(key)))
        edges = [len(places) * i // count for i in range(count + 1)]
        cut += [places[a:b] for a, b in itertools.pairwise(edges)]
    return cut
