"""Which clients may be fused into one group: a question of the recipe and of their sizes, for which no image is read."""

import itertools
from collections.abc import Hashable, Sequence

from fedssl.training.loop import Recipe

GROUP_SIZE = 32
"""Clients in a group where nobody measured: most of the gain; larger groups outgrow a core's cache."""


def fusion_key(recipe: Recipe, num_labeled: int, num_examples: int) -> Hashable:
    """Return what clients must have in common to be fused: their steps, and whether they have labels."""
    labeled = num_labeled > 0 and bool(recipe.method.views().labeled)
    return recipe.num_steps(num_labeled, num_examples), labeled


def cut_groups(keys: Sequence[Hashable], size: int) -> list[list[int]]:
    """Cut the places 0, 1, ... of a cohort into groups of equal keys, each of at most `size`, in order.

    A run of equal keys is cut into as few groups as it takes, of nearly equal size.

    Args:
        keys: The key of each place.
        size: At least 1.
    """
    cut: list[list[int]] = []
    for _, run in itertools.groupby(range(len(keys)), key=lambda place: keys[place]):
        places = list(run)
        count = -(-len(places) // size)
        edges = [len(places) * i // count for i in range(count + 1)]
        cut += [places[a:b] for a, b in itertools.pairwise(edges)]
    return cut
