"""The groups of clients that are fused: the recipe and the clients' sizes decide, and no image is read."""

import itertools
from collections.abc import Hashable, Sequence

from fedssl.training.recipe import Recipe

GROUP_SIZE = 32
"""The group size (clients) if none is measured: it has most of the gain, and larger groups outgrow a core's cache."""


def fusion_key(recipe: Recipe, num_labeled: int, num_examples: int) -> Hashable:
    """Return a key that clients must share to be fused: their number of steps, and whether they have labels."""
    labeled = num_labeled > 0 and bool(recipe.method.views().labeled)
    return recipe.num_steps(num_labeled, num_examples), labeled


def cut_groups(keys: Sequence[Hashable], size: int) -> list[list[int]]:
    """Cut the places 0, 1, ... of a cohort into groups of equal keys, each of at most `size` places, in order.

    Neighbors with equal keys are cut into as few groups as possible, of nearly equal size.

    Args:
        keys: The `fusion_key` of each place.
        size: Largest size of a group, at least 1.
    """
    cut: list[list[int]] = []
    for _, run in itertools.groupby(range(len(keys)), key=lambda place: keys[place]):
        places = list(run)
        count = -(-len(places) // size)
        edges = [len(places) * i // count for i in range(count + 1)]
        cut += [places[a:b] for a, b in itertools.pairwise(edges)]
    return cut
