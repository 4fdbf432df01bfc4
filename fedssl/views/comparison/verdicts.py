"""Which lines of a comparison can be told apart: what seeds and held-out images say, taken from recorded runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedssl.core.errors import InputError
from fedssl.views.closer_look import closer_look
from fedssl.views.comparison.gather import Line
from fedssl.views.comparison.significance import (
    ALPHA,
    Counts,
    Floats,
    ImageCounts,
    Mask,
    Spread,
    counts_by_image,
    letters_of,
    probabilities,
    spread_over_seeds,
    with_least_spread,
)

MOST_LINES = 26
"""More lines are not compared in pairs: the test would take long, and hardly any pair could be told apart."""


class Predictions(NamedTuple):
    """Predictions of the final EMA models for held-out images: whether each is right, (N, L), and of which image, (N,)."""

    right: Mask
    images: Counts


@dataclass(frozen=True)
class Verdicts:
    """What the test says.

    Args:
        pairs: One row for each tested line but the first: ``label``; ``gain``, the difference of its mean EMA accuracy from the first
            line's, and ``error``, the gain's standard error by seeds and images together; ``only_line`` and ``only_first``, the
            predictions that only one of the two has right (NaN if unknown); ``p``, how often luck alone would make such a
            difference, corrected for the number of pairs; ``apart``, whether that is below 5 %.
        letters: Letters by label: two lines that share a letter cannot be told apart.
        overlap: See `fedssl.views.comparison.significance.spread_factor`.
        notes: What could not be tested, and why.
    """

    pairs: pd.DataFrame
    letters: Mapping[str, str]
    overlap: float
    notes: tuple[str, ...]


def verdicts_of(lines: Sequence[Line], runs: pd.DataFrame) -> Verdicts:
    """Test all pairs of the lines that have every seed of the first line.

    Args:
        lines: The lines of a comparison.
        runs: One row per run: label, seed, ema_accuracy.
    """
    overlap = _overlap(lines)
    seeds = list(lines[0].runs)
    tested, notes = _testable(lines, runs)
    if not 2 <= len(tested) <= MOST_LINES:
        return Verdicts(pd.DataFrame(), {}, overlap, tuple(notes))
    values = _accuracies(tested, seeds, runs)
    means = values.mean(0)
    gain = means[:, None] - means[None, :]
    by_seed, by_image = spread_over_seeds(values, overlap), None
    spreads = [by_seed] if by_seed is not None else []
    try:
        found = _predictions(tested, seeds)
        by_image = counts_by_image(*found)
        spreads.append(with_least_spread(by_image.spread, gain, len(found.right)))
    except InputError as error:
        notes.append(f"the test knows no luck of images: {error}")
    if not spreads:
        return Verdicts(pd.DataFrame(), {}, overlap, tuple(notes))
    p = probabilities(gain, *spreads)
    letters = _letters(tested, means, p < ALPHA)
    if letters is None:
        letters = {}
        notes.append("which lines cannot be told apart needs more letters than there are")
    return Verdicts(
        pairs=_pairs(tested, gain, p, spreads, by_image),
        letters=letters,
        overlap=overlap,
        notes=tuple(notes),
    )


def together(parts: Sequence[Verdicts]) -> Verdicts:
    """Return the verdicts of several groups as one; letters of two groups say nothing about each other."""
    pairs = [part.pairs for part in parts if len(part.pairs)]
    return Verdicts(
        pairs=pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame(),
        letters={label: letters for part in parts for label, letters in part.letters.items()},
        overlap=max(part.overlap for part in parts),
        notes=tuple(note for part in parts for note in part.notes),
    )


def _testable(lines: Sequence[Line], runs: pd.DataFrame) -> tuple[list[Line], list[str]]:
    """Return the lines that can be tested against each other, and sentences about the others."""
    first, unknown = lines[0], runs[runs["ema_accuracy"].isna()]["label"].unique()
    tested, notes = [], []
    for line in lines:
        if line.label in unknown:
            notes.append(
                f"{line.label}: not tested against other lines, because it has a run without accuracy"
            )
        elif set(first.runs) <= line.runs.keys():
            tested.append(line)
        elif set(first.runs) & line.runs.keys():
            notes.append(
                f"{line.label}: not tested against other lines, because it lacks a seed of {first.label}"
            )
    if len(tested) > MOST_LINES:
        notes = [f"no tests of pairs: there are more than {MOST_LINES} lines"]
    return (tested if first in tested else []), notes


def _overlap(lines: Sequence[Line]) -> float:
    """Return how far the held-out images of seeds come from one pool; 0 if all seeds have the same ones, or if it is unknown."""
    for line in lines:
        facts = [run.data for run in line.runs.values()]
        if len({str(fact.get("held_out_sha256")) for fact in facts}) > 1:
            held_out, train = facts[0].get("num_held_out"), facts[0].get("num_train")
            if isinstance(held_out, int) and isinstance(train, int) and train > 0:
                return held_out / train
    return 0.0


def _accuracies(lines: Sequence[Line], seeds: Sequence[int], runs: pd.DataFrame) -> Floats:
    """Return the EMA accuracies, (S, L)."""
    table = runs.pivot(index="seed", columns="label", values="ema_accuracy")
    return table.loc[list(seeds), [line.label for line in lines]].to_numpy(dtype=np.float64)


def _predictions(lines: Sequence[Line], seeds: Sequence[int]) -> Predictions:
    """Return the predictions of all lines for the held-out images of all seeds.

    Raises:
        InputError: The record of a run does not say what its models predict, and its images are no longer there; or lines
            have other held-out images than the first line.
    """
    right, images = [], []
    for seed in seeds:
        looks = [closer_look(line.runs[seed]) for line in lines]
        for line, look in zip(lines, looks, strict=True):
            if any(look[key] != looks[0][key] for key in ("images", "labels")):
                raise InputError(line.label, f"has other held-out images than {lines[0].label}")
        truth = np.asarray(looks[0]["labels"])
        right.append(np.stack([_predicted(look) == truth for look in looks], axis=1))
        images += looks[0]["images"]
    _, codes = np.unique(np.asarray(images), return_inverse=True)
    return Predictions(np.concatenate(right), codes.astype(np.int64))


def _predicted(look: Mapping[str, Any]) -> Counts:
    return np.asarray(look["models"]["ema"]["predicted"], dtype=np.int64)


def _pairs(
    lines: Sequence[Line],
    gain: Floats,
    p: Floats,
    spreads: Sequence[Spread],
    by_image: ImageCounts | None,
) -> pd.DataFrame:
    error = np.sqrt(np.sum([spread.variance for spread in spreads], axis=0))
    columns = {
        "label": [line.label for line in lines],
        "gain": gain[:, 0],
        "error": error[:, 0],
        "only_line": math.nan if by_image is None else by_image.only[:, 0],
        "only_first": math.nan if by_image is None else by_image.only[0],
        "p": p[0],
        "apart": p[0] < ALPHA,
    }
    return pd.DataFrame(columns).iloc[1:].reset_index(drop=True)


def _letters(lines: Sequence[Line], means: Floats, apart: Mask) -> dict[str, str] | None:
    """Return the letters of lines; the most accurate line has the letter a. None if there are too few letters."""
    order = np.argsort(-means, kind="stable")
    letters = letters_of(apart[np.ix_(order, order)])
    if letters is None:
        return None
    return {lines[i].label: text for i, text in zip(order.tolist(), letters, strict=True)}
