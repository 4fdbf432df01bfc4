"""Pseudo-labels that nobody can judge: images that truly have no label have no true class to compare a guess with."""

import math

NO_TRUTH = "the unlabeled images have no true label, not even a hidden one"
"""Why nobody knows how many pseudo-labels are right."""

NOT_KNOWN = f"How many pseudo-labels are right is not known: {NO_TRUTH}."
"""The same as a sentence."""


def is_right_unknown(right: float, used: float) -> bool:
    """Say whether pseudo-labels were used and nobody knows how many of them are right; both are shares in [0, 1] or NaN."""
    return used > 0 and math.isnan(right)
