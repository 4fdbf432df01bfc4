"""The page of a comparison: which line is better, by how much, and whether the difference may be luck."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.statistics import FEWEST_SEEDS
from fedssl.views.comparison.table import tables_of
from fedssl.views.reports.charts import COLORS, Chart, Row, number, significant, thinned
from fedssl.views.reports.interval_specs import intervals
from fedssl.views.reports.line_specs import curves
from fedssl.views.reports.page import Page, write_page
from fedssl.views.unknown_truth import NOT_KNOWN

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 150
"""A curve has at most this many points, because a page may hold a hundred curves."""

SPENT = {
    "round": ("round", "rounds"),
    "MB": ("megabytes", "traffic"),
    "seconds": ("seconds", "time"),
    "virtual seconds": ("virtual_seconds", "virtual time"),
}
"""The axes against which accuracy is drawn: name of the axis to (column of the curves, name in the chart's title)."""

BAND = "Lines are means over seeds, bands go from the worst seed to the best."


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page of a comparison.

    Args:
        comparison: The comparison to show.
        path: The HTML file to write.
    """
    write_page(comparison_page(comparison), path)


def comparison_page(comparison: Comparison) -> Page:
    """Return the page of a comparison."""
    lines, runs, seeds = len(comparison.lines), len(comparison.runs), comparison.most_seeds
    # Lines of one name are called by what differs, so the page says their name once.
    names = set(comparison.lines["name"])
    whose = f"{names.pop()}: " if len(names) == 1 and lines > 1 else ""
    return Page(
        title=f"{whose}{lines} experiment{'s' * (lines > 1)}, {runs} run{'s' * (runs > 1)}",
        subtitle=(
            f"{comparison.source}, {comparison.evaluated_on} images, up to {seeds} seed{'s' * (seeds > 1)} each; "
            f"compared with {_bases(comparison)}"
        ),
        tables=tables_of(comparison),
        notes=comparison.notes,
        charts=list(_charts(comparison)),
        texts={
            "runs": "\n".join(
                f"{row.label}, seed {row.seed}: {row.path}" for row in comparison.runs.itertuples()
            )
        },
    )


def _charts(comparison: Comparison) -> Iterator[Chart]:
    others = comparison.lines[comparison.lines["label"] != comparison.lines["baseline"]]
    if others["paired_seeds"].any():
        yield _gain_chart(comparison)
    yield _accuracy_chart(comparison)
    for axis, (column, name) in SPENT.items():
        if comparison.curves[column].notna().any():
            yield _curve_chart(comparison, axis, column, name)
    for key, column, title, note in (
        (
            "right",
            "pseudo_label_accuracy",
            "Pseudo-labels that are right",
            "% of the accepted pseudo-labels.",
        ),
        (
            "used",
            "pseudo_label_coverage",
            "Pseudo-labels that are used",
            "% of the unlabeled images shown."
            + (f" {NOT_KNOWN}" if comparison.lacks_truth else ""),
        ),
    ):
        if comparison.curves[column].notna().any():
            rows, names = _points_of_lines(comparison, "round", "round", column)
            spec = curves(rows, "round", names, "%", bands=len(names) <= len(COLORS))
            yield Chart(key, title, f"{note} {BAND}", rows, spec)
    yield from _number_charts(comparison)


def _number_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw each number that some line recorded, a line of the chart a line of the comparison."""
    labels = [str(label) for label in comparison.lines["label"]]
    for name, recorded in comparison.number_curves.groupby("name"):
        rows: list[Row] = []
        for label, line in recorded.groupby("label", sort=False):
            points = [
                {
                    "line": str(label),
                    "round": int(point["round"]),
                    "mean": significant(point["mean"]),
                    "worst": significant(point["low"]),
                    "best": significant(point["high"]),
                }
                for point in line.sort_values("round").to_dict("records")
            ]
            rows += thinned(points, MOST_POINTS)
        spec = curves(rows, "round", labels, str(name), bands=len(labels) <= len(COLORS))
        yield Chart(
            f"number-{name}",
            f"Recorded: {name}",
            "The server's value. Lines are means over seeds, bands go from the lowest to the highest seed.",
            rows,
            spec,
        )


def _gain_chart(comparison: Comparison) -> Chart:
    others = comparison.lines[comparison.lines["label"] != comparison.lines["baseline"]]
    rows = _intervals(others, "gain")
    own = comparison.runs[
        comparison.runs["label"].isin(others["label"]) & comparison.runs["gain"].notna()
    ]
    seeds = _seeds(own, "gain")
    note = f"Points of EMA accuracy over {_bases(comparison)}: seeds (ticks), {_say_interval(comparison)}"
    if comparison.most_seeds >= FEWEST_SEEDS:
        note += " If an interval contains 0, the seeds do not show which of the two is better."
    spec = intervals(rows, seeds, "points", (-100, 100), zero=True)
    title = "Gain over the first line" if len(comparison.groups) == 1 else "Gain over the base"
    return Chart("gain", title, note, rows, spec)


def _bases(comparison: Comparison) -> str:
    """Return the label of the line that all others are measured against, or that each group has its own."""
    if len(comparison.groups) == 1:
        return comparison.baselines[0]
    return "the base of each group"


def _accuracy_chart(comparison: Comparison) -> Chart:
    rows = _intervals(comparison.lines, "ema_accuracy")
    spec = intervals(rows, _seeds(comparison.runs, "ema_accuracy"), "%", (0, 100), zero=False)
    note = f"EMA accuracy at the end: seeds (ticks), {_say_interval(comparison)}"
    return Chart("final", "Accuracy at the end", note, rows, spec)


def _say_interval(comparison: Comparison) -> str:
    """Return the end of a sentence that says what is drawn beside the seeds."""
    if comparison.most_seeds >= FEWEST_SEEDS:
        return "mean, and 95 % interval of the mean by Student's t."
    return "and mean. An interval of the mean needs three seeds."


def _curve_chart(comparison: Comparison, axis: str, column: str, name: str) -> Chart:
    rows, names = _points_of_lines(comparison, axis, column, "ema_accuracy")
    spec = curves(rows, axis, names, "%", bands=len(names) <= len(COLORS))
    note = f"EMA accuracy against {axis}, both as means over seeds. {BAND}"
    if axis == "seconds":
        note += " The start of the workers, with which a first round begins, is left out."
    if axis == "round":
        note = (
            f"% of the {comparison.evaluated_on} images, moving average of the global model. {BAND}"
        )
    return Chart(f"by-{column}", f"Accuracy by {name}", note, rows, spec, wide=axis == "round")


def _points_of_lines(
    comparison: Comparison, axis: str, column: str, value: str
) -> tuple[list[Row], list[str]]:
    """Return the points of all lines, and the labels of the lines."""
    rows: list[Row] = []
    names = []
    for label, line in comparison.curves.groupby("label", sort=False):
        known = line[line[value].notna() & line[column].notna()]
        points = [
            {
                "line": str(label),
                axis: number(point[column], 3),
                "mean": number(point[value] * 100),
                "worst": number(point[f"{value}_low"] * 100),
                "best": number(point[f"{value}_high"] * 100),
            }
            for point in known.to_dict("records")
        ]
        rows += thinned(points, MOST_POINTS)
        # Lines without points are named too, so that a line has the same color in all charts; no legend shows them.
        names.append(str(label))
    return rows, names


def _intervals(lines: "pd.DataFrame", value: str) -> list[Row]:
    return [
        {
            "line": line["label"],
            "mean": number(line[value] * 100),
            "low": number(line[f"{value}_ci95_low"] * 100),
            "high": number(line[f"{value}_ci95_high"] * 100),
        }
        for line in lines.to_dict("records")
        if line[value] == line[value]
    ]


def _seeds(runs: "pd.DataFrame", value: str) -> list[Row]:
    return [
        {"line": run["label"], "seed": run["seed"], "value": number(run[value] * 100)}
        for run in runs.to_dict("records")
    ]
