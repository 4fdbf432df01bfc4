"""Which lines of a comparison differ by more than luck: a test of all pairs of lines, and groups of lines.

Two kinds of luck decide a measured difference. Other seeds give other partitions, labels and initial weights. Other held-out
images give other accuracies. So the variance of a difference is the sum of two variances: one from its spread over the seeds,
and one from the images that only one of two lines names correctly. The test is Tukey's: it corrects for the number of pairs,
so that if no two lines differ in truth, about one comparison of twenty tells at least one pair apart.

All functions work on arrays; shares are in [0, 1], and L is the number of lines.
"""

import itertools
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ALPHA = 0.05
"""Two lines are told apart if luck alone would make a difference as large as theirs less often than this."""

UNSTEADY = 0.01
"""A line is less steady than the others if luck alone would make it so less often than this."""

ENDLESS = 1e6
"""Degrees of freedom that stand for infinitely many."""

TINY = 1e-18
"""A variance of shares below this is rounding."""

MOST_GROUPS = len(string.ascii_lowercase)
"""A group of lines has a letter, so there are no more groups than letters."""


@dataclass(frozen=True)
class Spread:
    """How uncertain the difference of each pair of lines is, for one kind of luck; both arrays are (L, L).

    Args:
        variance: Variance of the difference of two lines' accuracies.
        freedom: Degrees of freedom of the variance.
    """

    variance: Floats
    freedom: Floats


def spread_over_seeds(values: Floats, overlap: float = 0.0) -> Spread | None:
    """Return how uncertain differences of means over seeds are; None for fewer than two seeds or two lines.

    A seed is a block: the spread is what is left of the values once the mean of each line and of each seed is taken away. Lines that
    are far less steady than the others do not count in it: a line that fails on one seed says nothing of the others' luck. If
    a pair has more spread of its own than that, its own spread counts, with the few degrees of freedom that it has: an
    unsteady line does not borrow the steadiness of the others.

    Args:
        values: Accuracies, (S, L); a row has the same seed of all lines.
        overlap: See `spread_factor`.
    """
    seeds, lines = values.shape
    if seeds < 2 or lines < 2:
        return None
    steady = values[:, _steady_lines(values)]
    freedom = (steady.shape[1] - 1) * (seeds - 1)
    common = 2 * _squares_left(steady) / freedom
    own = (values[:, :, None] - values[:, None, :]).var(0, ddof=1)
    variance = np.maximum(common, own) * spread_factor(seeds, overlap)
    return Spread(variance, np.where(own > common, seeds - 1.0, float(freedom)))


def _squares_left(values: Floats) -> float:
    """Return the sum of squares of what is left once the mean of each line and of each seed is taken away."""
    left = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    return float((left**2).sum())


def _steady_lines(values: Floats) -> Mask:
    """Return which lines, (L,), are about as steady as the others, by an F test of the least steady line, again and again.

    The test compares how far a line's distance from the mean of the others varies over seeds with what is left of the others. It is
    corrected for the number of lines. If all lines are equally steady, it finds an unsteady one in one of a hundred comparisons.
    """
    steady = np.ones(values.shape[1], dtype=bool)
    while (count := int(steady.sum())) > 2:
        named = np.flatnonzero(steady)
        ratios = []
        for line in named:
            others = values[:, named[named != line]]
            expected = _squares_left(others) / ((count - 2) * (len(values) - 1))
            own = (values[:, line] - others.mean(1)).var(ddof=1) / (1 + 1 / (count - 1))
            ratios.append(own / expected if expected > TINY else np.inf if own > TINY else 0.0)
        worst = int(np.argmax(ratios))
        freedom = len(values) - 1, (count - 2) * (len(values) - 1)
        if count * stats.f.sf(ratios[worst], *freedom) >= UNSTEADY:
            break
        steady[named[worst]] = False
    return steady


def spread_factor(seeds: int, overlap: float) -> float:
    """Return by what to multiply the variance over seeds to have the variance of a mean over the seeds.

    Args:
        seeds: S, the number of seeds.
        overlap: 0 if all seeds have the same held-out images. If each seed draws its own from one pool of images, the seeds share
            images and are no independent samples. Then it is the number of held-out images over that of training images, and
            1/S becomes 1/S + overlap (Nadeau & Bengio, Inference for the generalization error, Machine Learning 52, 2003).
    """
    return 1 / seeds + overlap


@dataclass(frozen=True)
class ImageCounts:
    """What held-out images say of lines; all arrays are (L, L).

    Args:
        gain: Accuracy of the row's line minus that of the column's line, over all predictions.
        spread: How uncertain the gain is.
        only: Number of predictions that the row's line has right and the column's line has wrong.
    """

    gain: Floats
    spread: Spread
    only: Counts


def counts_by_image(right: Mask, images: Counts) -> ImageCounts:
    """Return what held-out images say of lines; for one prediction an image, the variance is McNemar's.

    An image that is held out for several seeds counts once, with all its predictions, for these are alike.

    Args:
        right: Whether a prediction is right, (N, L); a row is one image and one seed of all lines.
        images: Which image a row is of, (N,).
    """
    _, place = np.unique(images, return_inverse=True)
    shown = np.bincount(place).astype(np.float64)
    hits = np.stack([np.bincount(place, line) for line in right.T.astype(np.float64)], axis=1)
    accuracy = hits.sum(0) / shown.sum()
    # How far each image is from the mean of its line, weighed by its predictions; the products sum to a covariance.
    off = hits - shown[:, None] * accuracy
    covariance = off.T @ off / shown.sum() ** 2
    own = np.diag(covariance)
    variance = np.maximum(own[:, None] + own[None, :] - 2 * covariance, 0.0)
    return ImageCounts(
        gain=accuracy[:, None] - accuracy[None, :],
        spread=Spread(variance, np.full(variance.shape, ENDLESS)),
        only=right.T.astype(np.int64) @ ~right,
    )


def with_least_spread(spread: Spread, gain: Floats, predictions: int) -> Spread:
    """Return how uncertain differences are by images: at least as uncertain as if the fewest images made them.

    Lines whose accuracies differ by g name at least the share g of the images differently, and McNemar's variance of that many is
    (g - g^2) / N. A difference of means over several rounds may be larger than what the final models disagree on.

    Args:
        spread: What the final models say.
        gain: The differences that are tested, (L, L), shares.
        predictions: N, the number of predictions of a line.
    """
    least = (np.abs(gain) - gain**2) / predictions
    return Spread(np.maximum(spread.variance, least), spread.freedom)


def probabilities(gain: Floats, *spreads: Spread) -> Floats:
    """Return how often luck alone would make a pair's difference or a larger one, corrected for the number of pairs, (L, L).

    The degrees of freedom of the summed variance are Welch's and Satterthwaite's.

    Args:
        gain: Accuracy of the row's line minus that of the column's line, (L, L).
        spreads: How uncertain the gain is by each kind of luck.
    """
    lines = len(gain)
    variance = np.sum([spread.variance for spread in spreads], axis=0)
    parts = np.sum([spread.variance**2 / spread.freedom for spread in spreads], axis=0)
    p = np.ones((lines, lines))
    for one, other in itertools.combinations(range(lines), 2):
        difference, total = abs(gain[one, other]), variance[one, other]
        if total > TINY:
            freedom = min(total**2 / parts[one, other], ENDLESS)
            found = stats.studentized_range.sf(difference / np.sqrt(total / 2), lines, freedom)
        else:  # no luck was seen at all
            found = float(difference**2 <= TINY)
        p[one, other] = p[other, one] = found
    return p


def letters_of(apart: Mask) -> list[str] | None:
    """Return letters for each line, so that two lines share a letter if, and only if, they are not told apart.

    This is a compact letter display (Piepho, Journal of Computational and Graphical Statistics 13, 2004).

    Args:
        apart: Whether two lines are told apart, (L, L).

    Returns:
        A text for each line, such as ``"ab"``; None if there are more groups than letters.
    """
    lines = range(len(apart))
    groups = [frozenset(lines)]
    for one, other in itertools.combinations(lines, 2):
        if apart[one, other]:
            groups = _without_both(groups, one, other)
        if len(groups) > MOST_GROUPS:
            return None
    named = list(zip(sorted(groups, key=sorted), string.ascii_lowercase, strict=False))
    return ["".join(letter for group, letter in named if line in group) for line in lines]


def _without_both(groups: Sequence[frozenset[int]], one: int, other: int) -> list[frozenset[int]]:
    """Return groups none of which holds both lines, without groups that are parts of others."""
    split: dict[frozenset[int], None] = {}
    for group in groups:
        both = one in group and other in group
        split |= dict.fromkeys([group - {one}, group - {other}] if both else [group])
    return [group for group in split if not any(group < larger for larger in split)]
