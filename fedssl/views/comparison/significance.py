"""Which lines of a comparison differ by more than luck: a test over seeds, a test over images, and groups of lines.

Two kinds of luck decide a measured difference. Other seeds give other partitions, labels and initial weights: the test over
seeds asks whether a difference is large beside its spread from seed to seed. Other held-out images give other accuracies:
the test over images asks the same of images. Both tests correct for the number of pairs: if no two lines of a comparison
differ in truth, a test tells any two of them apart in one comparison of twenty.

All functions work on arrays; shares are in [0, 1], and L is the number of lines.
"""

import functools
import itertools
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ALPHA = 0.05
"""Two lines are told apart if luck makes such a difference with less than this probability."""

RESAMPLES = 2000
"""The test over images draws the held-out images anew this many times."""

CHUNK_BYTES = 64 * 2**20
"""The draws are made in chunks of about this size (bytes)."""

MOST_GROUPS = len(string.ascii_lowercase)
"""A group of lines has a letter, so there are no more groups than letters."""


@dataclass(frozen=True)
class SeedTest:
    """What the seeds say about lines.

    Args:
        p: Probability that luck makes the difference between a line and the first line, corrected for the number of pairs, (L,);
            1 for the first line.
        apart: Whether two lines are told apart, (L, L).
    """

    p: Floats
    apart: Mask


@dataclass(frozen=True)
class ImageTest:
    """What the held-out images say about lines; all arrays but `p` are (L, L).

    Args:
        p: As in `SeedTest`.
        apart: As in `SeedTest`.
        gain: Accuracy of the row's line minus that of the column's line, over all predictions.
        error: Standard error of the gain.
        only: Number of predictions that the row's line has right and the column's line has wrong.
    """

    p: Floats
    apart: Mask
    gain: Floats
    error: Floats
    only: Counts


def seed_test(values: Floats, overlap: float = 0.0) -> SeedTest | None:
    """Compare the differences of lines with their spread over seeds; None for fewer than two seeds or two lines.

    It is Tukey's test in a design of blocks, where a seed is a block. The spread is what is left of the values once the mean of
    each line and of each seed is taken away; if a pair has more spread of its own than that, its own counts. For two lines,
    this is Student's paired t test.

    Args:
        values: Accuracies, (S, L); a row has the same seed of all lines.
        overlap: See `spread_factor`.
    """
    seeds, lines = values.shape
    if seeds < 2 or lines < 2:
        return None
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    freedom = (lines - 1) * (seeds - 1)
    common = 2 * float((residuals**2).sum()) / freedom
    differences = values[:, :, None] - values[:, None, :]
    variance = np.maximum(common, differences.var(0, ddof=1)) * spread_factor(seeds, overlap)
    with np.errstate(divide="ignore", invalid="ignore"):
        ranges = np.abs(differences.mean(0)) / np.sqrt(variance / 2)
    # Without any spread, equal means give 0 / 0, which is no difference, and other means a range without end.
    ranges = np.nan_to_num(ranges, nan=0.0, posinf=np.finfo(np.float64).max)
    critical = _critical_range(lines, freedom)
    p = np.asarray(stats.studentized_range.sf(ranges[0], lines, freedom), dtype=np.float64)
    p[0] = 1.0
    return SeedTest(np.where(np.isinf(ranges[0]), 0.0, p), ranges > critical)


@functools.cache  # scipy integrates for a tenth of a second
def _critical_range(lines: int, freedom: int) -> float:
    return float(stats.studentized_range.ppf(1 - ALPHA, lines, freedom))


def spread_factor(seeds: int, overlap: float) -> float:
    """Return by what to multiply the variance over seeds to have the variance of a mean over the seeds.

    Args:
        seeds: S, the number of seeds.
        overlap: 0 if all seeds have the same held-out images. If each seed draws its own from one pool of images, the seeds share
            images and are no independent samples. Then it is the number of held-out images over that of training images, and
            1/S becomes 1/S + overlap (Nadeau & Bengio, Inference for the generalization error, Machine Learning 52, 2003).
    """
    return 1 / seeds + overlap


def image_test(right: Mask, images: Counts) -> ImageTest | None:
    """Compare the differences of lines with what other held-out images could give; None for fewer than two lines.

    The images are drawn anew with replacement. An image that is held out for several seeds is drawn with all its predictions, for
    these are alike. In each draw, the largest of all pairs' deviations over their standard errors is taken; its distribution
    corrects for the number of pairs (Westfall & Young, Resampling-based multiple testing, 1993).

    Args:
        right: Whether a prediction is right, (N, L); a row is one image and one seed of all lines.
        images: Which image a row is of, (N,).
    """
    lines = right.shape[1]
    if lines < 2 or not len(images):
        return None
    # Sum the predictions of each image.
    _, place = np.unique(images, return_inverse=True)
    shown = np.bincount(place, np.ones(len(place)))
    hits = np.stack([np.bincount(place, line) for line in right.T.astype(np.float64)], axis=1)
    # Draw images, and take all pairs' gains of each draw.
    drawn = _accuracies_of_draws(hits, shown)
    accuracy = hits.sum(0) / shown.sum()
    first, second = np.triu_indices(lines, 1)
    gains = (accuracy[:, None] - accuracy[None, :])[first, second]
    deviations = drawn[:, first] - drawn[:, second] - gains
    errors = deviations.std(0, ddof=1)
    # Compare each pair's gain with the draws' largest deviations; two lines that predict the same are not different.
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = np.nan_to_num(np.abs(deviations) / errors, nan=0.0).max(1)
        scores = np.nan_to_num(np.abs(gains) / errors, nan=0.0)
    at_least = len(largest) - np.searchsorted(np.sort(largest), scores, side="left")
    p = _symmetric((at_least + 1) / (len(largest) + 1), lines, diagonal=1.0)
    return ImageTest(
        p=p[0],
        apart=p < ALPHA,
        gain=accuracy[:, None] - accuracy[None, :],
        error=_symmetric(errors, lines, diagonal=0.0),
        only=right.T.astype(np.int64) @ ~right,
    )


def letters_of(apart: Mask) -> list[str]:
    """Return letters for each line, so that two lines share a letter if, and only if, they are not told apart.

    This is a compact letter display (Piepho, Journal of Computational and Graphical Statistics 13, 2004).

    Args:
        apart: Whether two lines are told apart, (L, L).

    Returns:
        A text for each line, such as ``"ab"``. The texts are empty if there are more groups than letters.
    """
    lines = range(len(apart))
    groups = [frozenset(lines)]
    for one, other in itertools.combinations(lines, 2):
        if apart[one, other]:
            groups = _without_both(groups, one, other)
        if len(groups) > MOST_GROUPS:
            return [""] * len(apart)
    named = list(zip(sorted(groups, key=sorted), string.ascii_lowercase, strict=False))
    return ["".join(letter for group, letter in named if line in group) for line in lines]


def _without_both(groups: Sequence[frozenset[int]], one: int, other: int) -> list[frozenset[int]]:
    """Return groups none of which holds both lines, without groups that are parts of others."""
    split: dict[frozenset[int], None] = {}
    for group in groups:
        both = one in group and other in group
        split |= dict.fromkeys([group - {one}, group - {other}] if both else [group])
    return [group for group in split if not any(group < larger for larger in split)]


def _accuracies_of_draws(hits: npt.NDArray[Any], shown: npt.NDArray[Any]) -> Floats:
    """Return the accuracy of each line in each draw of images, (RESAMPLES, L)."""
    images = len(shown)
    generator = np.random.default_rng(0)  # so that the same records give the same page
    count = max(1, CHUNK_BYTES // (8 * images))
    parts = []
    for start in range(0, RESAMPLES, count):
        size = min(count, RESAMPLES - start)
        times = generator.multinomial(images, np.full(images, 1 / images), size=size)
        parts.append((times @ hits) / (times @ shown)[:, None])
    return np.concatenate(parts)


def _symmetric(upper: Floats, lines: int, *, diagonal: float) -> Floats:
    """Return a symmetric matrix (L, L) from its part above the diagonal, row by row."""
    matrix = np.full((lines, lines), diagonal)
    first, second = np.triu_indices(lines, 1)
    matrix[first, second] = matrix[second, first] = upper
    return matrix
