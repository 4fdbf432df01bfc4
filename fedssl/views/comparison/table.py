"""Lays out a comparison as tables; a note below each table explains the columns."""

import io
import math
from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd

from fedssl.core.console import Console
from fedssl.metrics.balanced import MEASURES
from fedssl.record.judges import in_brackets
from fedssl.record.rows import NAN
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.pivot import Pivot, pivot_of
from fedssl.views.comparison.statistics import FEWEST_SEEDS
from fedssl.views.comparison.yardstick_table import yardstick_table
from fedssl.views.text_table import OnScreen, TextTable
from fedssl.views.unknown_truth import NO_TRUTH, is_right_unknown

Line = Mapping[Any, Any]
"""One row of `Comparison.lines`: values by column name."""

FIRST = "experiment"
"""Heading of the first column, which holds the labels of the lines."""

ACCURACIES = (
    "% of the global model and of its moving average (EMA); gain of the EMA over {base}, "
    "seed by seed; right: share of the used pseudo-labels that match the hidden truth; used: "
    "share of unlabeled images whose pseudo-label is accepted"
)
NO_RIGHT = f"; ?: nobody knows how many are right, because {NO_TRUTH}"
GAP = "; gap %: how much of the way from the EMA of {base} to the bound's a row has come"
LIKE = "; like: rows that share a letter cannot be told apart"
LIKE_IN_GROUP = "; like: rows below one base that share a letter cannot be told apart"
FIRST_ROW = "the first row"
BASE_ABOVE = "the nearest row above it that is marked base"
BASE = "base"
"""The gain of a row that others are measured against, if there are several such rows."""

UNKNOWN = "?"
"""The share of right pseudo-labels where the unlabeled images have no true label."""

ONE_SEED = "; one seed tells little: what it gains may be luck"
DIFFERENCES = (
    "each setting that can change a result and is not the same in all lines; settings that only one "
    "kind of a section has are left out"
)
SHORT = {"balanced_accuracy": "bal. acc."}
"""Names of measures that are too long for the heading of a column, and shorter ones."""
LONGEST_VALUE = 24
"""A longer value of a setting is cut, so that tables fit the screen."""

INTERVALS = (
    "95 % intervals of the means, by Student's t: accuracy ± and EMA ± are half of the interval, "
    "gain is the whole interval; an interval needs three seeds; {pairs}"
)
PAIRS = "pairs: seeds that both the row and its base, {base}, have; worst, best: the least and the largest gain of one seed"
TWO_SEEDS = "; two seeds have no interval of their mean: it would be nine deviations wide to either side, and an interval needs three seeds"
OVERLAP = (
    "; each seed has held-out images of its own from one pool, so the seeds share images and the "
    "intervals are wider (Nadeau & Bengio, 2003)"
)
LUCK = (
    "gain of the EMA over {base}, ± its standard error by seeds and images together; only it, "
    "only base: predictions of the final models that only this row or only its base has "
    "right; p: how often luck alone would make such a difference, corrected for the number of "
    "pairs of rows (Tukey's test); apart: p is below 0.05"
)
BALANCED = (
    "of the final moving averages; every class counts the same, however many images it has; gain: the "
    "measure before it less that of {base}, seed by seed"
)
EACH_BALANCED = {
    "macro_f1": "macro F1: mean F1 of the classes",
    "balanced_accuracy": "bal. acc.: balanced accuracy, their mean recall",
    "auroc": "AUROC: each class against the rest",
}
REACH = (
    "reached: seeds whose EMA reached this accuracy; rounds, MB (up and down) and seconds: what a "
    "run needed to reach it, mean over the seeds, shown only if all seeds reached it; the seconds leave "
    "out the start of the workers, with which the first round begins"
)
NUMBERS = (
    "numbers that methods and strategies record: mean over the last rounds, and its deviation over "
    "the seeds"
)
COSTS = (
    "seconds (with the start of the workers), MB up and MB down of a run, mean over seeds; failed: failed clients in all seeds "
    "together"
)
VIRTUAL = "; virtual s: seconds of the virtual clock"
LOST = "; lost: clients lost to virtual time in all seeds together"
INACTIVE = "; inactive: clients that had nothing to train on, in all seeds together"

ONE_MODEL = "; of one seed, images say which model is better, not which method"
PIVOT = "% of the moving average (EMA), as in the table above: a column for each value"
MOST_WITH_DEVIATION = 4
"""A pivot of more columns shows no deviation over seeds."""


def tables_of(comparison: Comparison, *, brief: bool = False) -> list[TextTable]:
    """Return the tables of a comparison: accuracies, their intervals, tests, what reaching the baseline took, costs.

    Measures that give every class the same weight have a table if they were asked for. The table of seeds needs several seeds;
    the tests and the table of what reaching the baseline took need several lines.

    Args:
        comparison: The comparison to lay out.
        brief: Return only the accuracies, and the costs if any run has virtual time.
    """
    tables, pivot = [_accuracies(comparison)], pivot_of(comparison.groups)
    tables += [_pivot(comparison, pivot)] if pivot is not None else []
    if brief:
        return [*tables, *([_costs(comparison)] if comparison.is_timed else [])]
    several = comparison.most_seeds > 1
    tables += [_measures(comparison)] if comparison.measures else []
    tables += [_differences(comparison)] if comparison.differences else []
    tables += [_seeds(comparison)] if several else []
    tables += [_luck(comparison)] if len(comparison.verdicts.pairs) else []
    tables += [_reach(comparison)] if any(len(g.lines) > 1 for g in comparison.groups) else []
    tables += [_numbers(comparison)] if len(comparison.numbers) else []
    tables += [_yardsticks(comparison)] if len(comparison.yardsticks) else []
    return [*tables, _costs(comparison)]


def _accuracies(comparison: Comparison) -> TextTable:
    several, letters = comparison.most_seeds > 1, comparison.verdicts.letters
    title = (
        f"{comparison.source}, {comparison.evaluated_on} images: mean of the last "
        f"{comparison.last_evaluations} evaluations{', ± deviation over seeds' if several else ''}"
    )
    like = ["like"] if letters else []
    gap = ["gap %"] if "gap_closed" in comparison.lines else []
    columns = ("seeds", "accuracy", "EMA", "gain", *gap, *like, "right", "used")
    rows = []
    for line in comparison.lines.to_dict("records"):
        rows.append(
            [
                line["label"] + in_brackets(line["judged_by"]),
                str(line["seeds"]),
                _spread(line["server_accuracy"], line["server_accuracy_std"]),
                _spread(line["ema_accuracy"], line["ema_accuracy_std"]),
                _base(comparison) if _is_base(line) else _points(line["gain"]),
                *([_share(line["gap_closed"])] if gap else []),
                *([letters.get(line["label"], "-")] if letters else []),
                UNKNOWN if _lacks_truth(line) else _percent(line["pseudo_label_accuracy"]),
                _percent(line["pseudo_label_coverage"]),
            ]
        )
    like_note = LIKE if len(comparison.groups) == 1 else LIKE_IN_GROUP
    note = ACCURACIES + (NO_RIGHT if comparison.lacks_truth else "")
    note += (GAP if gap else "") + (like_note if letters else "")
    note = note.format(base=_name_base(comparison)) + ("" if several else ONE_SEED)
    return TextTable(title, (FIRST, *columns), rows, note)


def _measures(comparison: Comparison) -> TextTable:
    """Return a row for each line, with a measure and its gain for each measure that was asked for."""
    asked = [name for name in MEASURES if name in comparison.measures]
    columns = [title for name in asked for title in (SHORT.get(name, MEASURES[name]), "gain")]
    rows = []
    for line in comparison.lines.to_dict("records"):
        cells = []
        for name in (f"ema_{measure}" for measure in asked):
            cells.append(_spread(line[name], line[f"{name}_std"]))
            cells.append(_base(comparison) if _is_base(line) else _points(line[f"{name}_gain"]))
        rows.append([line["label"] + in_brackets(line["judged_by"]), *cells])
    title = f"the same weight for every class, {comparison.evaluated_on} images, %"
    note = "; ".join(
        [BALANCED.format(base=_name_base(comparison)), *(EACH_BALANCED[name] for name in asked)]
    )
    return TextTable(title, (FIRST, *columns), rows, note)


def _differences(comparison: Comparison) -> TextTable:
    """Return a row for each setting and value; of a setting that all lines have, the usual value comes last."""
    rows, count = [], len(comparison.lines)
    for key, values in comparison.differences.items():
        usual = max(values, key=lambda value: len(values[value]))
        all_have_it = sum(map(len, values.values())) == count
        for value, labels in sorted(values.items(), key=lambda each: each[0] == usual):
            is_rest = value == usual and len(labels) > 1 and all_have_it
            whose = "the others" if is_rest else "; ".join(labels)
            rows.append([whose, f"{key} = {_shortened(value)}"])
    return TextTable("settings that differ", (FIRST, "setting"), rows, DIFFERENCES)


def _seeds(comparison: Comparison) -> TextTable:
    """Return what the seeds of each line say: the intervals of its means if any line has enough seeds, and its paired gains."""
    has_intervals = comparison.most_seeds >= FEWEST_SEEDS
    rows = []
    for line in comparison.lines.to_dict("records"):
        low, high = line["gain_ci95_low"], line["gain_ci95_high"]
        gain = "-" if math.isnan(low) else f"{_points(low)} to {_points(high)}"
        halves = [_percent(_half(line, name)) for name in ("server_accuracy", "ema_accuracy")]
        pairs = [
            str(line["paired_seeds"]),
            _points(line["gain_worst"]),
            _points(line["gain_best"]),
        ]
        cells = [*([gain] if has_intervals else []), *pairs]
        cells = [""] * len(cells) if _is_base(line) else cells
        rows.append([line["label"], *(halves if has_intervals else []), *cells])
    columns = ("accuracy ±", "EMA ±", "gain") if has_intervals else ()
    pairs_note = PAIRS.format(base=_name_base(comparison))
    note = INTERVALS.format(pairs=pairs_note) if has_intervals else pairs_note + TWO_SEEDS
    note += OVERLAP if has_intervals and comparison.verdicts.overlap else ""
    return TextTable("what the seeds say", (FIRST, *columns, "pairs", "worst", "best"), rows, note)


def _luck(comparison: Comparison) -> TextTable:
    columns = ("gain", "only it", "only base", "p", "apart")
    rows = [
        [
            pair["label"],
            f"{_points(pair['gain'])} ± {_percent(pair['error'])}",
            _count(pair["only_line"]),
            _count(pair["only_first"]),
            "< .001" if pair["p"] < 0.001 else f"{pair['p']:.3f}",
            "yes" if pair["apart"] else "no",
        ]
        for pair in comparison.verdicts.pairs.to_dict("records")
    ]
    note = LUCK.format(base=_name_base(comparison)) + (
        "" if comparison.most_seeds > 1 else ONE_MODEL
    )
    return TextTable("more than luck?", (FIRST, *columns), rows, note)


def _reach(comparison: Comparison) -> TextTable:
    columns = ["reached", "rounds", "MB", "seconds"]
    columns += ["virtual s"] if comparison.is_timed else []
    title = "until the final EMA accuracy of a row's base"
    if len(comparison.groups) == 1:
        title = f"until the first row's final EMA accuracy, {_percent(comparison.target)} %"
    rows = []
    for line in comparison.lines.to_dict("records"):
        names = ("rounds", "megabytes", "seconds", "virtual_seconds")
        cells = [f"{line['reached']} of {line['seeds']}"]
        cells += [_amount(line[f"{name}_to_reach"]) for name in names]
        rows.append([line["label"], *cells[: len(columns)]])
    note = REACH + (VIRTUAL if comparison.is_timed else "")
    return TextTable(title, (FIRST, *columns), rows, note)


def _numbers(comparison: Comparison) -> TextTable:
    rows = []
    for line in comparison.numbers.to_dict("records"):
        deviation = "-" if math.isnan(line["std"]) else f"{line['std']:.2g}"
        name = f"{line['label']}: {line['name']}"
        rows.append([name, str(line["seeds"]), f"{line['mean']:.5g}", deviation])
    return TextTable("what methods recorded", (FIRST, "seeds", "mean", "deviation"), rows, NUMBERS)


def _yardsticks(comparison: Comparison) -> TextTable:
    return yardstick_table(comparison.yardsticks, comparison.evaluated_on)


def _pivot(comparison: Comparison, pivot: Pivot) -> TextTable:
    """Return the EMA accuracies as rows by columns; deviations are left out if there are many columns."""
    lines = {line["label"]: line for line in comparison.lines.to_dict("records")}
    wide = len(pivot.columns) > MOST_WITH_DEVIATION
    rows = []
    for label, by_column in pivot.rows.items():
        row = [label]
        for column in pivot.columns:
            line = lines.get(by_column.get(column))
            mean, std = (line["ema_accuracy"], line["ema_accuracy_std"]) if line else (NAN, NAN)
            row.append(_percent(mean) if wide else _spread(mean, std))
        rows.append(row)
    title = f"EMA accuracy by {', '.join(pivot.factors)}"
    return TextTable(title, (FIRST, *pivot.columns), rows, PIVOT)


def _lacks_truth(line: Line) -> bool:
    return is_right_unknown(line["pseudo_label_accuracy"], line["pseudo_label_coverage"])


def _is_base(line: Line) -> bool:
    return bool(line["label"] == line["baseline"])


def _base(comparison: Comparison) -> str:
    """Return the gain of a row that others are measured against."""
    return "" if len(comparison.groups) == 1 else BASE


def _name_base(comparison: Comparison) -> str:
    return FIRST_ROW if len(comparison.groups) == 1 else BASE_ABOVE


def _costs(comparison: Comparison) -> TextTable:
    columns = ["seconds", "MB up", "MB down", "failed"]
    caption = COSTS
    if comparison.has_inactive_clients:
        columns, caption = [*columns, "inactive"], caption + INACTIVE
    if comparison.is_timed:
        columns, caption = [*columns, "virtual s", "lost"], caption + VIRTUAL + LOST
    rows = []
    for line in comparison.lines.to_dict("records"):
        cells = [_amount(line[name]) for name in ("seconds", "megabytes_up", "megabytes_down")]
        cells += [f"{line['clients_failed']:,}"]
        if comparison.has_inactive_clients:
            cells += [f"{line['clients_inactive']:,}"]
        if comparison.is_timed:
            cells += [_amount(line["virtual_seconds"]), f"{line['clients_lost']:,}"]
        rows.append([line["label"], *cells])
    return TextTable("what a run costs", (FIRST, *columns), rows, caption)


def as_text(comparison: Comparison) -> str:
    """Return all tables as text, 80 columns wide, and the notes below them."""
    console = Console(file=io.StringIO(), width=80)
    for table in tables_of(comparison):
        console.print(OnScreen(table))
        console.print()
    for note in comparison.notes:
        console.print(f"note: {note}", soft_wrap=True)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def as_html(comparison: Comparison) -> str:
    """Return all tables as HTML, for a notebook, and the notes below them."""
    shown = [
        f"<h4>{escape(table.title)}</h4>"
        + pd.DataFrame(list(table.rows), columns=list(table.columns)).to_html(index=False, border=0)
        + f"<small>{escape(table.note)}</small>"
        for table in tables_of(comparison)
    ]
    return "".join([*shown, *(f"<p>{escape(note)}</p>" for note in comparison.notes)])


def _shortened(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 3]}..."


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share * 100:.1f}"


def _share(share: float) -> str:
    return "-" if math.isnan(share) else f"{share * 100:.0f}"


def _points(share: float) -> str:
    if math.isnan(share):
        return "-"
    points = round(share * 100, 1)
    return f"{points:+.1f}" if points else "0.0"


def _count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _amount(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.1f}"


def _spread(mean: float, std: float) -> str:
    return _percent(mean) if math.isnan(std) else f"{_percent(mean)} ± {_percent(std)}"


def _half(line: Line, name: str) -> float:
    """Return half the width of the 95 % interval of a mean; NaN where there is no interval."""
    return float(line[f"{name}_ci95_high"] - line[f"{name}_ci95_low"]) / 2
