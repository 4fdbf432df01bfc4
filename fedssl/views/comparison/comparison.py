"""The comparison of recorded runs, from which terminal tables, the comparison page and the end of a sweep are made."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from fedssl.core.errors import InputError
from fedssl.core.extras import require
from fedssl.core.rng import SERVER
from fedssl.core.text import as_cell
from fedssl.data.federation import Federation
from fedssl.metrics.balanced import MEASURES
from fedssl.metrics.yardsticks import learned_from
from fedssl.record.judges import CLASSIFIER, judge_in
from fedssl.record.lines import columns_of
from fedssl.record.rows import PHASE, NumberRow
from fedssl.record.run_path import NUMBERS
from fedssl.views.comparison.agreement import UNDECIDING, disagreements, say_seeds, unpaired
from fedssl.views.comparison.gather import Line, gather
from fedssl.views.comparison.groups import DATA, Group, chosen, grouped
from fedssl.views.comparison.labels import differences, differing, factors, in_short, short_keys
from fedssl.views.comparison.reasons import reasons
from fedssl.views.comparison.statistics import (
    ACCURACIES,
    BALANCED,
    curves_of,
    lines_of,
    number_curves_of,
    numbers_of,
    spent_by_round,
    with_gains,
    with_gap,
    with_measures,
    with_reach,
)
from fedssl.views.comparison.verdicts import Verdicts, together, verdicts_of
from fedssl.views.comparison.yardstick_table import measure
from fedssl.views.run import Run
from fedssl.views.unknown_truth import is_right_unknown

if TYPE_CHECKING:
    from fedssl.views.pictures.plots import Picture

SUMMED = (
    *BALANCED,
    *("server_accuracy", "ema_accuracy", "pseudo_label_accuracy", "pseudo_label_coverage"),
    *("clients_failed", "clients_lost", "clients_inactive"),
    *("bytes_up", "bytes_down", "seconds", "virtual_seconds"),
)
"""Numbers of a run's summary that a comparison aggregates over seeds."""

NUMBERS_OF_RUN = re.compile(r" \([^()]*\d[^()]*\)(?=[:.])")
"""The part of a remark that holds one run's numbers, in brackets at the end of a finding."""

TRAINING = frozenset({"rounds", "phases", "train", "augment", "model"})
"""Sections whose settings train a model: if lines differ in them, their difference is not due to their methods alone."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Recorded runs, aggregated over their seeds; accuracies are shares in [0, 1].

    Args:
        lines: One row per line, group by group, its baseline first; columns as in `fedssl.views.comparison.statistics.lines_of` and
            `with_measures`; a column for each setting that differs between lines, by its dotted name; ``judged_by``: how the models
            of the line were judged at the end; ``baseline``: the label of the line that it is measured against (its own for a
            baseline); and ``target``: that line's final EMA accuracy, mean over its seeds, which the others of the group are timed
            until they reach.
        groups: Which lines are measured against which.
        runs: One row per run: its label, seed, path, numbers of its summary, gain, what it spent to reach the target.
        numbers: One row per line and recorded number: label, name, seeds, and mean and std over the seeds of the mean over the last
            rounds.
        number_curves: One row per line, number and round: label, name, round, and mean, low and high over the seeds.
        curves: One row per line and round; columns as in `fedssl.views.comparison.statistics.curves_of`.
        differences: Settings that differ between lines, as `fedssl.views.comparison.labels.differences` returns them.
        verdicts: Which lines can be told apart.
        measures: Names of the measures in `MEASURES` that a table shows because they were asked for.
        yardsticks: What classical classifiers make of the same labels, one row a classifier and seed, for each of the data that lines
            have; empty unless they were asked for.
        source: Data source of the first line.
        evaluated_on: The first line's held-out images: ``"test"`` or ``"validation"``.
        last_evaluations: Number of last evaluations whose mean is a run's accuracy, such as ``"10"``, or
            ``"4 to 10"`` if runs differ.
        notes: Sentences about runs that were left out and about unwanted differences.
    """

    lines: pd.DataFrame
    groups: tuple[Group, ...]
    runs: pd.DataFrame
    curves: pd.DataFrame
    numbers: pd.DataFrame
    number_curves: pd.DataFrame
    differences: Mapping[str, Mapping[str, Sequence[str]]]
    verdicts: Verdicts
    measures: Sequence[str]
    yardsticks: pd.DataFrame
    source: str
    evaluated_on: str
    last_evaluations: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return all tables as text, 80 columns wide, and the notes below them."""
        from fedssl.views.comparison.table import as_text

        return as_text(self)

    def __repr__(self) -> str:
        """Return how many lines and runs there are, and what each line is measured against."""
        return f"<Comparison of {len(self.lines)} lines, {len(self.runs)} runs, with {', '.join(self.baselines)}>"

    def _repr_html_(self) -> str:
        from fedssl.views.comparison.table import as_html

        return as_html(self)

    def plot(self) -> "Picture":
        """Draw the learning curves: means over seeds, with a band from the worst to the best seed."""
        require("matplotlib", "plot", "the picture")
        from fedssl.views.pictures.plots import comparison_figure

        data = f"{self.source}, {self.evaluated_on} images"
        return comparison_figure(self.curves, f"{data}: mean over seeds, band from worst to best")

    def latex(self) -> str:
        """Return the table of accuracies as LaTeX that needs the package booktabs."""
        from fedssl.views.comparison.latex import latex_of
        from fedssl.views.comparison.table import tables_of

        return latex_of(tables_of(self, brief=True)[0])

    @property
    def baselines(self) -> list[str]:
        """Labels of the lines that others are measured against, or that stand alone, in the order of the groups."""
        return [group.lines[0].label for group in self.groups]

    @property
    def target(self) -> float:
        """The final EMA accuracy of the first baseline, mean over its seeds."""
        return float(self.lines["target"].iloc[0])

    @property
    def lacks_truth(self) -> bool:
        """Whether some line used pseudo-labels of which nobody knows how many are right."""
        shares = self.lines[["pseudo_label_accuracy", "pseudo_label_coverage"]]
        return any(is_right_unknown(*share) for share in shares.itertuples(index=False))

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
        baseline: str | None = None,
        bound: str | None = None,
        by_data: bool = True,
        measures: Sequence[str] = (),
    ) -> "Comparison":
        """Read runs and aggregate them over their seeds.

        Args:
            paths: Run directories and folders that hold run directories; see `fedssl.views.comparison.gather.gather`.
            force: Compare runs even if their data or their split differs; a note says so.
            yardsticks: Measure classical classifiers on the federations of the baselines.
            baseline: The line, or lines, that others are measured against; see `fedssl.views.comparison.groups.grouped`.
            bound: The line, or one line a group, from which the share of the gap is counted that the others close; a label, or
                settings as for the baseline.
            by_data: Whether lines form groups without a named baseline; if false, all are measured against the first one.
            measures: Names of the measures in `MEASURES` that a table is to show.

        Raises:
            InputError: No finished run is found, or data or splits differ within a group and `force` is false, or no line is the
                named baseline or bound.
        """
        gathered = gather(paths)
        groups = grouped(gathered.lines, baseline, by_data=by_data)
        lines = tuple(line for group in groups for line in group.lines)
        different = [said for group in groups for said in disagreements(group.lines)]
        if different and not force:
            raise InputError("compare", "; ".join(different), "--force compares them all the same")
        runs = _runs(lines)
        rounds = spent_by_round(_rounds(lines), runs)
        recorded = _recorded(lines)
        bounds = [] if bound is None else chosen(bound, lines, "--bound")
        parts = [_part(group, runs, rounds, bounds) for group in groups]
        first = next(iter(lines[0].runs.values()))
        different_settings = differences({line.label: line.settings for line in lines})
        measured, unmeasured = _yardsticks(groups) if yardsticks else (pd.DataFrame(), [])
        summed = pd.concat([part.lines for part in parts], ignore_index=True)
        return cls(
            lines=_with_factors(_with_judges(summed, lines), lines),
            groups=groups,
            runs=pd.concat([part.runs for part in parts], ignore_index=True),
            curves=curves_of(rounds),
            numbers=numbers_of(recorded),
            number_curves=number_curves_of(recorded),
            differences=different_settings,
            verdicts=together([part.verdicts for part in parts]),
            measures=measures,
            yardsticks=measured,
            source=first.data["source"],
            evaluated_on=first.data["evaluated_on"],
            last_evaluations=_span(_of_all(lines, "last_rounds")),
            notes=(
                *gathered.notes,
                *different,
                *_alone(groups),
                *(said for group in groups for said in unpaired(group.lines)),
                *_training(different_settings, by_kind=len(set(_kinds(lines))) > 1),
                *(said for group in groups for said in _judges(group.lines)),
                *(note for part in parts for note in part.notes),
                *_older(summed, measures),
                *unmeasured,
                *_remarks(lines),
            ),
        )


class _Part(NamedTuple):
    """What is said of the lines of one group: rows of `Comparison.lines` and `Comparison.runs`, verdicts, and notes."""

    lines: pd.DataFrame
    runs: pd.DataFrame
    verdicts: Verdicts
    notes: list[str]


def _part(group: Group, runs: pd.DataFrame, rounds: pd.DataFrame, bounds: Sequence[Line]) -> _Part:
    """Measure the lines of a group against its baseline, and against the bound if it has one."""
    first = group.lines[0].label
    own = runs[runs["label"].isin([line.label for line in group.lines])]
    own = with_gains(own.reset_index(drop=True))
    target = float(own["ema_accuracy"][own["label"] == first].mean())
    own = with_reach(own, rounds, target)
    verdicts = verdicts_of(group.lines, own)
    lines = with_measures(lines_of(own, verdicts.overlap), own)
    lines = lines.assign(baseline=first, target=target)
    alike = [line.label for line in group.lines if _judges_of(line) == _judges_of(group.lines[0])]
    pairs = (
        verdicts.pairs[verdicts.pairs["label"].isin(alike)]
        if len(verdicts.pairs)
        else verdicts.pairs
    )
    notes = [*verdicts.notes, *reasons(group, lines, pairs)]
    if bounds:
        bound = [line.label for line in bounds if line in group.lines]
        is_there = len(bound) == 1 and not _alike(verdicts.pairs, bound[0])
        lines = with_gap(lines, bound[0]) if is_there else lines.assign(gap_closed=math.nan)
        if len(group.lines) > 1 and lines["gap_closed"].isna().all():
            has = ""
            if len(bound) == 1:
                is_base = bound[0] == first
                has = f"{first} is its own bound" if is_base else f"{bound[0]} is not above {first}"
                if _alike(verdicts.pairs, bound[0]):
                    has = f"{bound[0]} and {first} cannot be told apart"
            notes.append(f"no share of a gap: {has or f'{first} has {len(bound)} bounds'}")
    return _Part(lines, own, verdicts, notes)


def _alike(pairs: pd.DataFrame, label: str) -> bool:
    """Return whether a line was tested against the first line, and cannot be told from it: a share of such a gap says nothing."""
    return len(pairs) > 0 and bool((~pairs["apart"][pairs["label"] == label]).any())


def _alone(groups: Sequence[Group]) -> list[str]:
    """Return a sentence that names the lines that are measured against no other, if there are others that are."""
    names = [group.lines[0].label for group in groups if len(group.lines) == 1]
    if not names or len(groups) == 1:
        return []
    return [f"no other line has the data, or the settings, of {', '.join(names)}: no gain"]


def _yardsticks(groups: Sequence[Group]) -> tuple[pd.DataFrame, list[str]]:
    """Return what classical classifiers make of the groups' labels, and sentences that say where they make nothing of them.

    The classifiers depend on images and labels only, so groups with the same images and labels are measured once, whichever
    clients hold them.
    """
    by_data: dict[str, dict[int, Run]] = {}
    for name, group in zip(_names_of_data(groups), groups, strict=True):
        by_data[name] = {**group.lines[0].runs, **by_data.get(name, {})}
    measured, notes = [], []
    alike: dict[Any, tuple[list[str], dict[int, Federation]]] = {}
    for name, runs in by_data.items():
        try:
            federations = {seed: run.federation for seed, run in runs.items()}
        except InputError as error:
            notes.append(f"no yardsticks{f' with {name}' if len(by_data) > 1 else ''}: {error}")
            continue
        sources = {(run.data["source"], run.data["held_out_sha256"]) for run in runs.values()}
        key = frozenset(sources), frozenset((s, learned_from(f)) for s, f in federations.items())
        alike.setdefault(key, ([], federations))[0].append(name)
    for names, federations in alike.values():
        name = "; ".join(names)
        try:
            measured.append(measure(federations.items()).assign(data=name))
        except InputError as error:
            notes.append(f"no yardsticks{f' with {name}' if len(alike) > 1 else ''}: {error}")
    return pd.concat(measured, ignore_index=True) if measured else pd.DataFrame(), notes


def _names_of_data(groups: Sequence[Group]) -> list[str]:
    """Return for each group the settings in which its images and labels differ from another group's, such as ``alpha 0.1``."""
    firsts = [group.lines[0].settings for group in groups]
    keys = [key for key in differing(firsts) if key.startswith(DATA) and key not in UNDECIDING]
    shorts = short_keys(keys)
    return [in_short({key: own[key] for key in keys if key in own}, shorts) for own in firsts]


def _older(lines: pd.DataFrame, measures: Sequence[str]) -> list[str]:
    """Return a sentence for each line of which a measure is not known, though it was asked for."""
    unknown = {
        label: [
            title for name, title in MEASURES.items() if name in measures and _is_nan(line, name)
        ]
        for label, line in lines.set_index("label").iterrows()
    }
    return [
        f"{label}: no {', '.join(titles)}: a run of an older version did not measure it, or its model diverged"
        for label, titles in unknown.items()
        if titles
    ]


def _is_nan(line: "pd.Series[float]", measure: str) -> bool:
    return bool(pd.isna(line[f"ema_{measure}"]))


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


def _with_factors(table: pd.DataFrame, lines: Sequence[Line]) -> pd.DataFrame:
    """Return one row per line with the settings that differ, each in a column behind the label; NaN if a line lacks one."""
    found = factors({line.label: line.settings for line in lines})
    columns = {key: table["label"].map(_as_cells(by_line)) for key, by_line in found.items()}
    place = list(table.columns).index("label") + 1
    return pd.concat([table.iloc[:, :place], pd.DataFrame(columns), table.iloc[:, place:]], axis=1)


def _as_cells(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return JSON texts as cells of a table: text and numbers as they are, lists and tables as JSON."""
    values = {label: (text, json.loads(text)) for label, text in texts.items()}
    return {
        label: as_cell(value)
        if isinstance(value, str)
        else text
        if isinstance(value, list | dict)
        else value
        for label, (text, value) in values.items()
    }


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
    """Return why runs ended early, what went wrong in them, and which began with weights that know held-out images.

    Records of older versions may say none of these.

    What is said of several runs is said once, without the numbers of each run.
    """
    told: dict[str, list[tuple[str, int, str]]] = {}
    for line in lines:
        for seed, run in line.runs.items():
            kinds = ("stopped", "remark")
            for said in (*map(run.summary.get, kinds), run.data.get("weights_remark")):
                if said:
                    told.setdefault(NUMBERS_OF_RUN.sub("", said), []).append(
                        (line.label, seed, said)
                    )
    notes = []
    for common, runs in told.items():
        seeds: dict[str, list[int]] = {}
        for label, seed, _ in runs:
            seeds.setdefault(label, []).append(seed)
        whose = "; ".join(f"{label} {say_seeds(own)}" for label, own in seeds.items())
        notes.append(f"{whose}: {common if len(runs) > 1 else runs[0][2]}")
    return notes


def _runs(lines: Sequence[Line]) -> pd.DataFrame:
    """Return one row per run with the numbers of its summary, null as NaN.

    Older summaries count no inactive clients and have no measures that give every class the same weight.
    """
    runs = []
    for line in lines:
        for seed, run in line.runs.items():
            summary = {"clients_inactive": 0, **dict.fromkeys(BALANCED), **run.summary}
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
