"""The comparison of recorded runs, from which terminal tables, the comparison page and the end of a sweep are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedssl.core.errors import InputError
from fedssl.core.rng import SERVER
from fedssl.record.judges import CLASSIFIER, judge_in
from fedssl.record.lines import columns_of
from fedssl.record.rows import PHASE, NumberRow
from fedssl.record.run_path import NUMBERS
from fedssl.views.comparison.agreement import disagreements, unpaired
from fedssl.views.comparison.gather import Line, gather
from fedssl.views.comparison.labels import differences
from fedssl.views.comparison.statistics import (
    ACCURACIES,
    curves_of,
    lines_of,
    number_curves_of,
    numbers_of,
    spent_by_round,
    with_gains,
    with_gap,
    with_reach,
)
from fedssl.views.comparison.verdicts import Verdicts, verdicts_of
from fedssl.views.comparison.yardstick_table import measure
from fedssl.views.run import Run

SUMMED = (
    *("server_accuracy", "ema_accuracy", "pseudo_label_accuracy", "pseudo_label_coverage"),
    *("clients_failed", "clients_lost", "clients_inactive"),
    *("bytes_up", "bytes_down", "seconds", "virtual_seconds"),
)
"""Numbers of a run's summary that a comparison aggregates over seeds."""

TRAINING = frozenset({"rounds", "phases", "train", "augment", "model"})
"""Sections whose settings train a model: if lines differ in them, their difference is not due to their methods alone."""


@dataclass(frozen=True)
class Comparison:
    """Recorded runs, aggregated over their seeds; accuracies are shares in [0, 1].

    Args:
        lines: One row per line, the baseline first; columns as in `fedssl.views.comparison.statistics.lines_of`, and
            ``judged_by``: how the models of the line were judged at the end.
        runs: One row per run: its label, seed, path, numbers of its summary, gain, what it spent to reach the target.
        numbers: One row per line and recorded number: label, name, seeds, and mean and std over the seeds of the mean over the last
            rounds.
        number_curves: One row per line, number and round: label, name, round, and mean, low and high over the seeds.
        curves: One row per line and round; columns as in `fedssl.views.comparison.statistics.curves_of`.
        differences: Settings that differ between lines, as `fedssl.views.comparison.labels.differences` returns them.
        verdicts: Which lines can be told apart.
        yardsticks: What classical classifiers make of the same labels, one row a classifier and seed of the first line; empty
            unless they were asked for.
        source: Data source of the baseline.
        evaluated_on: The baseline's held-out images: ``"test"`` or ``"validation"``.
        last_evaluations: Number of last evaluations whose mean is a run's accuracy, such as ``"10"``, or
            ``"4 to 10"`` if runs differ.
        notes: Sentences about runs that were left out and about unwanted differences.
    """

    lines: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    numbers: pd.DataFrame
    number_curves: pd.DataFrame
    differences: Mapping[str, Mapping[str, Sequence[str]]]
    verdicts: Verdicts
    yardsticks: pd.DataFrame
    source: str
    evaluated_on: str
    last_evaluations: str
    notes: tuple[str, ...]

    @property
    def baseline(self) -> str:
        """Label of the first line."""
        return str(self.lines["label"].iloc[0])

    @property
    def target(self) -> float:
        """The final EMA accuracy of the baseline, mean over its seeds: other lines are timed until they reach it."""
        return float(self.lines["ema_accuracy"].iloc[0])

    @property
    def most_seeds(self) -> int:
        """Number of seeds of the line with the most seeds."""
        return int(self.lines["seeds"].max())

    @property
    def is_timed(self) -> bool:
        """Whether any run has virtual time."""
        return bool(self.lines["virtual_seconds"].notna().any())

    @property
    def has_inactive_clients(self) -> bool:
        """Whether any client had nothing to train on in a round of any run."""
        return bool(self.lines["clients_inactive"].any())

    @classmethod
    def of_runs(
        cls,
        paths: Sequence[Path],
        *,
        force: bool,
        yardsticks: bool = False,
        bound: str | None = None,
    ) -> "Comparison":
        """Read runs and aggregate them over their seeds.

        Args:
            paths: Run directories and folders that hold run directories; see `fedssl.views.comparison.gather.gather`.
            force: Compare runs even if their data or their split differs; a note says so.
            yardsticks: Measure classical classifiers on the federations of the first line.
            bound: Label of the line from which the share of the gap is counted that the others close.

        Raises:
            InputError: No finished run is found, or data or splits differ and `force` is false, or no line has the label of the
                bound.
        """
        gathered = gather(paths)
        lines = gathered.lines
        different = disagreements(lines)
        if different and not force:
            raise InputError("compare", "; ".join(different), "--force compares them all the same")
        runs = with_gains(_runs(lines))
        rounds = spent_by_round(_rounds(lines), runs)
        recorded = _recorded(lines)
        target = runs["ema_accuracy"][runs["label"] == lines[0].label].mean()
        runs = with_reach(runs, rounds, float(target))
        first = next(iter(lines[0].runs.values()))
        verdicts = verdicts_of(lines, runs)
        different_settings = differences({line.label: line.settings for line in lines})
        measured, unmeasured = _yardsticks(lines[0]) if yardsticks else (pd.DataFrame(), [])
        summed = lines_of(runs, verdicts.overlap)
        too_low = []
        if bound is not None:
            summed = with_gap(summed, _checked_bound(bound, lines))
            if summed["gap_closed"].isna().all():
                too_low = [f"no share of a gap: {bound} is not above {lines[0].label}"]
        return cls(
            lines=_with_judges(summed, lines),
            runs=runs,
            curves=curves_of(rounds),
            numbers=numbers_of(recorded),
            number_curves=number_curves_of(recorded),
            differences=different_settings,
            verdicts=verdicts,
            yardsticks=measured,
            source=first.data["source"],
            evaluated_on=first.data["evaluated_on"],
            last_evaluations=_span(_of_all(lines, "last_rounds")),
            notes=(
                *gathered.notes,
                *different,
                *unpaired(lines),
                *_training(different_settings, by_kind=len(set(_kinds(lines))) > 1),
                *_judges(lines),
                *too_low,
                *unmeasured,
                *verdicts.notes,
                *_remarks(lines),
            ),
        )


def _yardsticks(line: Line) -> tuple[pd.DataFrame, list[str]]:
    """Return what classical classifiers make of a line's labels, or a sentence that says why they make nothing of them."""
    try:
        return measure((seed, run.federation) for seed, run in line.runs.items()), []
    except InputError as error:
        return pd.DataFrame(), [f"no yardsticks: {error}"]


def _checked_bound(bound: str, lines: Sequence[Line]) -> str:
    labels = [line.label for line in lines]
    if bound not in labels:
        raise InputError("--bound", f"no line is called {bound!r}", f"one of: {', '.join(labels)}")
    return bound


def _kinds(lines: Sequence[Line]) -> list[str]:
    """Return the name and the method of each line, by which people tell lines apart."""
    return [f"{line.settings['name']} {line.settings['method.kind']}" for line in lines]


def _of_all(lines: Sequence[Line], key: str) -> list[int]:
    return [run.summary[key] for line in lines for run in line.runs.values()]


def _span(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def _training(different: Mapping[str, Mapping[str, Sequence[str]]], *, by_kind: bool) -> list[str]:
    """Return a sentence if lines were trained differently, such as at another learning rate, and differ in more than that."""
    keys = [key for key in different if key.partition(".")[0] in TRAINING]
    if not keys or (len(keys) == len(different) and not by_kind):
        return []
    return [
        f"lines differ in their training, so a gain has more than one reason: {', '.join(keys)}"
    ]


def _judge_of(run: Run) -> str:
    """Return how a run's model was judged at its end; older summaries name no judge."""
    return str(run.summary.get("judged_by", CLASSIFIER))


def _judges_of(line: Line) -> str:
    """Return the judges of a line's runs at their ends, which differ if seeds have different numbers of labels."""
    return " or ".join(dict.fromkeys(map(_judge_of, line.runs.values())))


def _with_judges(table: pd.DataFrame, lines: Sequence[Line]) -> pd.DataFrame:
    """Return one row per line with its judge in the column ``judged_by``."""
    by_label = {line.label: _judges_of(line) for line in lines}
    return table.assign(judged_by=table["label"].map(by_label))


def _judges(lines: Sequence[Line]) -> list[str]:
    """Return sentences about lines whose judge is another than the baseline's, and about accuracies that are left out."""
    wanted = _judges_of(lines[0])
    said = [
        f"{line.label}: its accuracy is that of another judge ({own}) than the accuracy of {lines[0].label} ({wanted}), so "
        "the two do not measure the same"
        for line in lines[1:]
        if (own := _judges_of(line)) != wanted
    ]
    for line in lines:
        left_out = {
            judge
            for run in line.runs.values()
            for judge in run.judges[: len(run.experiment.plans)]
            if judge != _judge_of(run)
        }
        if left_out:
            said.append(
                f"{line.label}: the accuracies of rounds with another judge than the last ({', '.join(sorted(left_out))}) "
                "are left out"
            )
    return said


def _remarks(lines: Sequence[Line]) -> list[str]:
    """Return why runs ended early and what went wrong in them; summaries of older versions may say neither."""
    return [
        f"{line.label} seed {seed}: {said}"
        for line in lines
        for seed, run in line.runs.items()
        for said in (run.summary.get("stopped"), run.summary.get("remark"))
        if said
    ]


def _runs(lines: Sequence[Line]) -> pd.DataFrame:
    """Return one row per run with the numbers of its summary, null as NaN; older summaries count no inactive clients."""
    runs = []
    for line in lines:
        for seed, run in line.runs.items():
            summary = {"clients_inactive": 0, **run.summary}
            told = {"label": line.label, "name": summary["name"], "seed": seed}
            numbers = {name: summary[name] for name in SUMMED}
            runs.append({**told, "path": str(run.path), **numbers})
    return pd.DataFrame(runs).astype(dict.fromkeys(SUMMED, float))


def _rounds(lines: Sequence[Line]) -> pd.DataFrame:
    return pd.concat(
        [
            _comparable(run).assign(label=line.label, seed=seed)
            for line in lines
            for seed, run in line.runs.items()
        ],
        ignore_index=True,
    )


def _comparable(run: Run) -> pd.DataFrame:
    """Return a run's rounds without the accuracies that another judge gave than the last one."""
    rounds, last = run.rounds, _judge_of(run)
    others = [p for p in rounds["phase"].unique() if judge_in(run.judges, int(p)) != last]
    rounds.loc[rounds["phase"].isin(others), list(ACCURACIES)] = float("nan")
    return rounds


def _recorded(lines: Sequence[Line]) -> pd.DataFrame:
    """Return the server's row of every number with a course that runs recorded, with what the run is.

    An older record has no numbers.
    """
    found = [
        run.numbers.assign(label=line.label, seed=seed, last=run.summary["last_rounds"])
        for line in lines
        for seed, run in line.runs.items()
        if (run.path / NUMBERS).exists()
    ]
    columns = [*columns_of(NumberRow), "label", "seed", "last"]
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
    has_course = ~table["name"].astype(str).str.startswith(f"{PHASE}.")
    return table[(table["client"] == SERVER) & has_course]
