"""Statistics over seeds: pure functions over tables of runs and rounds. Shares are in [0, 1]."""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fedssl.metrics.balanced import MEASURES
from fedssl.views.comparison.significance import spread_factor

LEVEL = 0.95
"""Every interval of a mean has this confidence level, a probability."""

FEWEST_SEEDS = 3
"""The mean of fewer seeds has no interval: by Student's t, that of two seeds is nine deviations to either side and says nothing."""

SLACK = 1e-9
"""Accuracies (shares) that differ by less than this are equal.

An accuracy is a count over some thousands of images: true differences are larger, and rounding errors are smaller.
"""

RUN = ["label", "seed"]
"""Columns that together identify a run."""

ACCURACIES = ("server_accuracy", "ema_accuracy")
"""Columns of accuracies whose spread over seeds is reported."""

BALANCED = tuple(f"{model}_{name}" for name in MEASURES for model in ("server", "ema"))
"""Columns of measures of the final models that give every class the same weight."""

BANDS = (*ACCURACIES, "pseudo_label_accuracy", "pseudo_label_coverage")
"""Columns of a curve that have a band from the lowest to the highest seed."""

SPENT = ("megabytes", "seconds", "virtual_seconds")
"""Columns of what a run has spent by the end of a round."""


def mean_interval(values: "pd.Series[float]", overlap: float = 0.0) -> tuple[float, float]:
    """Return low and high of the 95 % interval of a mean, by Student's t; both are NaN for fewer than `FEWEST_SEEDS` values.

    Args:
        values: One value a seed; NaN values are ignored.
        overlap: See `fedssl.views.comparison.significance.spread_factor`.
    """
    known = values.dropna()
    if len(known) < FEWEST_SEEDS:
        return math.nan, math.nan
    quantile = float(stdtrit(len(known) - 1, (1 + LEVEL) / 2))
    factor = spread_factor(len(known), overlap)
    half = quantile * float(known.std(ddof=1)) * math.sqrt(factor)
    return float(known.mean()) - half, float(known.mean()) + half


def spent_by_round(rounds: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return rounds with the ``megabytes`` (up and down) and ``seconds`` that their runs have spent by their ends.

    The seconds leave out what the first round takes longer than the median of the others: it waits for the workers and for what
    they build once. Only the first run of several pays for that, whatever its method.

    Args:
        rounds: Rows of `fedssl.record.rows.RoundRow` in order of rounds, with the ``label`` and ``seed`` of their run.
        runs: One row per run: label, seed, seconds.
    """
    by_run = rounds.assign(megabytes=(rounds["bytes_up"] + rounds["bytes_down"]) / 1e6)
    grouped = by_run.groupby(RUN, sort=False)
    usual = grouped["seconds"].transform(lambda seconds: seconds.iloc[1:].median())
    is_first = grouped.cumcount() == 0
    steady = rounds["seconds"].mask(is_first, np.fmin(rounds["seconds"], usual))
    # A round is evaluated while the next round trains, so the seconds of all rounds add up to more than the run's.
    spent = steady.groupby([rounds[name] for name in RUN], sort=False).cumsum()
    share = spent / grouped["seconds"].transform("sum")
    whole = rounds[RUN].merge(runs[[*RUN, "seconds"]], on=RUN, how="left")["seconds"]
    return rounds.assign(megabytes=grouped["megabytes"].cumsum(), seconds=share * whole)


def with_gains(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs with their ``gain``: their EMA accuracy minus that of the first line's run of the same seed.

    The gain is NaN where the first line has no run of the seed.

    Args:
        runs: One row per run: label, seed, ema_accuracy.
    """
    baseline = runs[runs["label"] == runs["label"].iloc[0]].set_index("seed")["ema_accuracy"]
    return runs.assign(gain=runs["ema_accuracy"] - runs["seed"].map(baseline))


def with_reach(runs: pd.DataFrame, rounds: pd.DataFrame, target: float) -> pd.DataFrame:
    """Return runs with what they had spent when their EMA accuracy first reached a target; NaN if it never did.

    New columns are ``rounds_to_reach``, ``megabytes_to_reach``, ``seconds_to_reach`` and ``virtual_seconds_to_reach``.

    Args:
        runs: One row per run: label, seed.
        rounds: The runs' rounds, as `spent_by_round` returns them.
        target: Accuracy in [0, 1].
    """
    reached = rounds[rounds["ema_accuracy"] >= target - SLACK].drop_duplicates(RUN)
    names = {"round": "rounds_to_reach", **{name: f"{name}_to_reach" for name in SPENT}}
    columns = reached[[*RUN, *names]].rename(columns=names)
    return runs.merge(columns, on=RUN, how="left", validate="one_to_one")


def lines_of(runs: pd.DataFrame, overlap: float = 0.0) -> pd.DataFrame:
    """Return one row per line, in the order of the runs: statistics over the line's seeds.

    ``*_std`` is the standard deviation over seeds, NaN for a single seed; ``*_ci95_low`` and ``*_ci95_high`` bound the 95 %
    interval of the mean, and are NaN for fewer than `FEWEST_SEEDS` seeds. ``gain`` is the mean over the ``paired_seeds`` seeds that the first line
    has too.

    Args:
        runs: Runs as `with_gains` and `with_reach` return them.
        overlap: See `fedssl.views.comparison.significance.spread_factor`.
    """
    return pd.DataFrame([_line(seeds, overlap) for _, seeds in runs.groupby("label", sort=False)])


def with_gap(lines: pd.DataFrame, bound: str) -> pd.DataFrame:
    """Return lines with ``gap_closed``: the share of the way from the first line's accuracy to a bound's that a line has come.

    It is a share of EMA accuracy, below 0 for a line below the first one; NaN if the bound is not above the first line.

    Args:
        lines: Lines as `lines_of` returns them.
        bound: Label of the line that is the bound, such as training with all labels.
    """
    accuracy = lines["ema_accuracy"]
    first, best = accuracy.iloc[0], accuracy[lines["label"] == bound].iloc[0]
    way = best - first if best > first else math.nan
    return lines.assign(gap_closed=(accuracy - first) / way)


def with_measures(lines: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return lines with the measures of their final models that give every class the same weight; NaN if unknown.

    New columns are for example ``ema_macro_f1``, its mean over the line's seeds; ``ema_macro_f1_std``, the deviation over seeds;
    and ``ema_macro_f1_gain``, the mean difference from the first line's run of the same seed.

    Args:
        lines: Lines as `lines_of` returns them.
        runs: One row per run: label, seed, and the measures.
    """
    first = runs[runs["label"] == runs["label"].iloc[0]].set_index("seed")
    columns: dict[str, pd.Series[float]] = {}
    for name in BALANCED:
        gains = runs.assign(gain=runs[name] - runs["seed"].map(first[name]))
        by_line = gains.groupby("label", sort=False)
        columns |= {
            name: by_line[name].mean(),
            f"{name}_std": by_line[name].std(ddof=1),
            f"{name}_gain": by_line["gain"].mean(),
        }
    return lines.join(pd.DataFrame(columns), on="label")


def curves_of(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return one row per line and round: means over ``seeds`` seeds of accuracies, pseudo-labels and what was spent.

    ``*_low`` and ``*_high`` are the lowest and the highest seed. Cells are NaN where nothing was evaluated.

    Args:
        rounds: Rounds as `spent_by_round` returns them.
    """
    by_round = rounds.groupby(["label", "round"], sort=False)
    columns = {"seeds": by_round["seed"].size()}
    for name in BANDS:
        column = by_round[name]
        columns |= {name: column.mean(), f"{name}_low": column.min(), f"{name}_high": column.max()}
    columns |= {name: by_round[name].mean() for name in SPENT}
    return pd.DataFrame(columns).reset_index()


def numbers_of(recorded: pd.DataFrame) -> pd.DataFrame:
    """Return one row a line and recorded number: the mean over the last rounds of each run, summed up over the seeds.

    Args:
        recorded: One row a run, round and number: label, seed, round, name, value, and how many last rounds count.

    Returns:
        Columns ``label``, ``name``, ``seeds``, ``mean`` and ``std`` (over seeds; NaN of one seed).
    """
    from_end = recorded.groupby([*RUN, "name"], sort=False)["round"].rank(ascending=False)
    last = recorded[from_end <= recorded["last"]]
    by_run = last.groupby([*RUN, "name"], sort=False)["value"].mean()
    grouped = by_run.groupby(["label", "name"], sort=False)
    table = grouped.agg(seeds="size", mean="mean", std="std")
    return table.reset_index()


def number_curves_of(recorded: pd.DataFrame) -> pd.DataFrame:
    """Return one row a line, number and round: ``mean``, ``low`` and ``high`` over the seeds; arguments as in `numbers_of`."""
    grouped = recorded.groupby(["label", "name", "round"], sort=False)["value"]
    return grouped.agg(mean="mean", low="min", high="max").reset_index()


def _line(seeds: pd.DataFrame, overlap: float) -> dict[str, Any]:
    line: dict[str, Any] = {"name": seeds["name"].iloc[0], "label": seeds["label"].iloc[0]}
    line["seeds"] = len(seeds)
    for name in ACCURACIES:
        line |= {name: seeds[name].mean(), f"{name}_std": seeds[name].std(ddof=1)}
        line |= _interval(name, seeds[name], overlap)
    gain = seeds["gain"]
    line |= {"gain": gain.mean(), **_interval("gain", gain, overlap)}
    line |= {"gain_worst": gain.min(), "gain_best": gain.max(), "paired_seeds": gain.count()}
    for name in ("pseudo_label_accuracy", "pseudo_label_coverage", "seconds", "virtual_seconds"):
        line[name] = seeds[name].mean()
    for name in ("clients_failed", "clients_lost", "clients_inactive"):
        line[name] = int(seeds[name].sum())
    line["megabytes"] = (seeds["bytes_up"] + seeds["bytes_down"]).mean() / 1e6
    line["megabytes_up"] = seeds["bytes_up"].mean() / 1e6
    line["megabytes_down"] = seeds["bytes_down"].mean() / 1e6
    line["reached"] = seeds["rounds_to_reach"].count()
    # A mean over only the seeds that reached the target would make a line look fast that fails on other seeds.
    reached = line["reached"] == len(seeds)
    for name in ("rounds", *SPENT):
        line[f"{name}_to_reach"] = seeds[f"{name}_to_reach"].mean() if reached else math.nan
    return line


def _interval(name: str, values: "pd.Series[float]", overlap: float) -> dict[str, float]:
    low, high = mean_interval(values, overlap)
    return {f"{name}_ci95_low": low, f"{name}_ci95_high": high}
