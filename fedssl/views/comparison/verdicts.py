"""Which lines of a comparison can be told apart: what seeds and held-out images say, taken from recorded runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedssl.core.errors import InputError
from fedssl.views.closer_look import closer_look
from fedssl.views.comparison.gather import Line
from fedssl.views.comparison.significance import (
    Counts,
    Floats,
    ImageTest,
    Mask,
    SeedTest,
    image_test,
    letters_of,
    seed_test,
)

MOST_LINES = 50
"""More lines are not compared in pairs: the tests would take long, and hardly any pair could be told apart."""


class Predictions(NamedTuple):
    """Predictions of the final EMA models for held-out images: whether each is right, (N, L), and of which image, (N,)."""

    right: Mask
    images: Counts


@dataclass(frozen=True)
class Verdicts:
    """What the tests say.

    Args:
        pairs: One row for each tested line but the first: ``label``; ``p_seeds`` and ``p_images``, the probabilities that luck makes the
            line's difference from the first line, corrected for the number of pairs; ``image_gain`` and ``image_error``, the gain of
            the final models over all predictions, and its standard error; ``only_line`` and ``only_first``, the predictions that
            only one of the two has right; ``apart``, whether both tests tell the two lines apart. A test that was not
            possible leaves NaN and does not count.
        letters: Letters by label: two lines that share a letter cannot be told apart.
        overlap: See `fedssl.views.comparison.significance.spread_factor`.
        notes: Why a test was not possible.
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
    overlap = _overlap(lines[0])
    seeds = list(lines[0].runs)
    tested = [line for line in lines if set(seeds) <= line.runs.keys()]
    notes = [
        f"{line.label}: not tested against other lines, because it lacks a seed of {lines[0].label}"
        for line in lines
        if line not in tested and set(seeds) & line.runs.keys()
    ]
    if len(tested) > MOST_LINES:
        notes = [f"no tests of pairs: there are more than {MOST_LINES} lines"]
    if not 2 <= len(tested) <= MOST_LINES:
        return Verdicts(pd.DataFrame(), {}, overlap, tuple(notes))
    by_seed, by_image = seed_test(_accuracies(tested, seeds, runs), overlap), None
    try:
        by_image = image_test(*_predictions(tested, seeds))
    except InputError as error:
        notes.append(f"no test over images: {error}")
    return Verdicts(
        pairs=_pairs(tested, by_seed, by_image),
        letters=_letters(tested, runs, _apart(by_seed, by_image)),
        overlap=overlap,
        notes=tuple(notes),
    )


def _overlap(line: Line) -> float:
    """Return how far the held-out images of a line's seeds come from one pool; 0 if all seeds have the same ones."""
    facts = [run.data for run in line.runs.values()]
    if len({fact["held_out_sha256"] for fact in facts}) == 1:
        return 0.0
    return float(facts[0]["num_held_out"] / facts[0]["num_train"])


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
            if look["images"] != looks[0]["images"]:
                raise InputError(line.label, f"has other held-out images than {lines[0].label}")
        truth = np.asarray(looks[0]["labels"])
        right.append(np.stack([_predicted(look) == truth for look in looks], axis=1))
        images += looks[0]["images"]
    _, codes = np.unique(np.asarray(images), return_inverse=True)
    return Predictions(np.concatenate(right), codes.astype(np.int64))


def _predicted(look: Mapping[str, Any]) -> Counts:
    return np.asarray(look["models"]["ema"]["predicted"], dtype=np.int64)


def _apart(by_seed: SeedTest | None, by_image: ImageTest | None) -> Mask | None:
    """Return which pairs all possible tests tell apart; None if no test was possible."""
    found = [test.apart for test in (by_seed, by_image) if test is not None]
    return np.logical_and.reduce(found) if found else None


def _pairs(
    lines: Sequence[Line], by_seed: SeedTest | None, by_image: ImageTest | None
) -> pd.DataFrame:
    apart = _apart(by_seed, by_image)
    if apart is None:
        return pd.DataFrame()
    unknown = np.full(len(lines), np.nan)
    columns = {
        "label": [line.label for line in lines],
        "p_seeds": unknown if by_seed is None else by_seed.p,
        "p_images": unknown if by_image is None else by_image.p,
        "image_gain": unknown if by_image is None else by_image.gain[:, 0],
        "image_error": unknown if by_image is None else by_image.error[:, 0],
        "only_line": unknown if by_image is None else by_image.only[:, 0],
        "only_first": unknown if by_image is None else by_image.only[0],
        "apart": apart[0],
    }
    return pd.DataFrame(columns).iloc[1:].reset_index(drop=True)


def _letters(lines: Sequence[Line], runs: pd.DataFrame, apart: Mask | None) -> dict[str, str]:
    """Return the letters of lines; the most accurate line has the letter a."""
    if apart is None:
        return {}
    means = runs.groupby("label")["ema_accuracy"].mean()
    order = sorted(range(len(lines)), key=lambda i: -means[lines[i].label])
    letters = letters_of(apart[np.ix_(order, order)])
    return {lines[i].label: text for i, text in zip(order, letters, strict=True)}
