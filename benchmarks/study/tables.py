"""The tables of the pages, as Markdown, made from the files of results alone."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from benchmarks.study.plan import (
    BOUND,
    DATA,
    LABELS_ONLY,
    RESULTS,
    Unit,
    cells,
    lines_of,
)

COLUMNS = ("model", "EMA", "gain", "gap, %", "baseline", "best", "right / used, %", "seconds")
"""Columns of the table of a cell: accuracy of the global model and of its moving average in percent; the gain of the moving average in points
over that of the baseline, the best line with labels only, with its interval; the share of the gap to all labels that is closed; whether the line
can be told from the baseline and from the best line with unlabeled images; which share of the used pseudo-labels is right at the end, and
of how many images they are used; seconds of the fastest run."""

GLUE = "\u00a0"
"""A space at which no line is broken."""

OVERVIEW = "overview"
"""Name of the table with a row for each cell."""

PLACES = {"A": "the server", "B": "all clients", "C": "two of ten clients"}
"""Where the labels of a protocol are."""

IMAGES = {"fashion": "Fashion-MNIST", "cifar10": "CIFAR-10"}
"""What tables call the data sets that have all protocols."""


def tables(data: str) -> dict[str, str]:
    """Return the table of each measured cell as Markdown, by names such as ``fashion-A-iid``."""
    lines, runs = (_read(data, name) for name in ("lines", "runs"))
    file = RESULTS / f"{data}_yardsticks.csv"
    yardsticks = pd.read_csv(file) if file.exists() else None
    found = {}
    for protocol, skew in cells(data):
        own = _of(lines, protocol, skew)
        if own.empty:
            continue
        seconds = _of(runs, protocol, skew).groupby("line")["seconds"].min()
        num_seeds = int(own["seeds"].max())
        by_line = {row["line"]: row for row in own.to_dict("records")}
        best = by_line[str(_with_unlabeled(own.set_index("line")["ema_accuracy"]).idxmax())]
        rows = [
            _row(data, by_line[line], by_line[by_line[line]["baseline"]], best, seconds[line])
            for line in lines_of(data, protocol)
            if line in by_line
        ]
        if yardsticks is not None and protocol != "C":  # in C, other images have the labels
            named = yardsticks[yardsticks["seed"] < num_seeds].groupby("classifier", sort=False)
            rows += [_yardstick(str(name), values) for name, values in named]
        seeds = "seed 0 alone" if num_seeds == 1 else f"seeds 0 to {num_seeds - 1}"
        head = [f"{name_of_skew(skew)}, {seeds}", *COLUMNS]
        found[f"{data}-{protocol}-{skew}"] = _table(head, rows)
    return found


def overview() -> str:
    """Return the table with a row for each cell of the data sets that have all protocols."""
    rows = [
        [IMAGES[data], *row]
        for data in DATA
        if data in IMAGES and (RESULTS / f"{data}_lines.csv").exists()
        for row in _overview_rows(data)
    ]
    head = ["images", "labels at", "clients", "seeds", "labels only", "best with unlabeled images"]
    return _table([*head, "all labels", "lines above labels only"], rows)


def name_of_skew(skew: str) -> str:
    """Return how tables and pictures call a skew."""
    return "IID" if skew == "iid" else f"Dir({skew.removeprefix('0')})"


def markdown(cells: list[str]) -> str:
    """Return a row of a table as Markdown."""
    return f"| {' | '.join(cells)} |"


def _overview_rows(data: str) -> Iterator[list[str]]:
    lines = _read(data, "lines")
    for protocol, skew in cells(data):
        own = _of(lines, protocol, skew).set_index("line")
        if own.empty:
            continue
        own = own[own["seeds"] == own["seeds"].max()]
        accuracy = own["ema_accuracy"] * 100
        others = _with_unlabeled(accuracy)
        best, baseline = others.idxmax(), accuracy[own["baseline"].iloc[0]]
        title = Unit(data, protocol, skew, str(best), 0).title
        yield [
            PLACES[protocol],
            name_of_skew(skew),
            str(own["seeds"].max()),
            f"{baseline:.1f}",
            f"{others[best]:.1f}: {title}",
            f"{accuracy[BOUND]:.1f}" if BOUND in accuracy else "-",
            f"{(others > baseline).sum()} of {len(others)}",
        ]


def _read(data: str, name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{data}_{name}.csv", dtype={"skew": str})


def _of(table: pd.DataFrame, protocol: str, skew: str) -> pd.DataFrame:
    return table[(table["protocol"] == protocol) & (table["skew"] == skew)]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(map(markdown, [head, ["---"] * len(head), *rows]))


def _with_unlabeled(accuracy: "pd.Series[float]") -> "pd.Series[float]":
    """Return the accuracies of the lines that learn from unlabeled images."""
    return accuracy.drop([*LABELS_ONLY, BOUND], errors="ignore")


def _row(
    data: str, row: dict[Any, Any], baseline: dict[Any, Any], best: dict[Any, Any], seconds: float
) -> list[str]:
    """Return the row of a line; a line with fewer seeds than the baseline says how many it has."""
    title = Unit(data, row["protocol"], "", row["line"], 0).title
    if row["seeds"] < baseline["seeds"]:
        title += f" ({row['seeds']} seed{'s' * (row['seeds'] > 1)})"
    low, high = row["gain_ci95_low"], row["gain_ci95_high"]
    interval = "" if math.isnan(low) else f" ({low * 100:+.1f}{GLUE}to{GLUE}{high * 100:+.1f})"
    gap = row["gap_closed"]
    right, used = row["pseudo_label_accuracy"] * 100, row["pseudo_label_coverage"] * 100
    return [
        title,
        _accuracy(row["server_accuracy"], row["server_accuracy_std"]),
        _accuracy(row["ema_accuracy"], row["ema_accuracy_std"]),
        "" if row is baseline else f"{row['gain'] * 100:+.1f}{interval}",
        f"{gap * 100:.0f}" if gap >= 0 else "-",
        "baseline" if row is baseline else _against(row, baseline),
        "best" if row is best else _against(row, best),
        "" if math.isnan(right) else f"{right:.1f}{GLUE}/{GLUE}{used:.1f}",
        f"{seconds:.0f}",
    ]


def _against(row: dict[Any, Any], other: dict[Any, Any]) -> str:
    """Return whether a line is above or below another one, or cannot be told from it; ``-`` if they were not tested."""
    letters = row["letters"], other["letters"]
    if not all(isinstance(own, str) for own in letters):
        return "-"
    if set(letters[0]) & set(letters[1]):
        return "="
    return "above" if row["ema_accuracy"] > other["ema_accuracy"] else "below"


def _accuracy(mean: float, deviation: float) -> str:
    spread = "" if math.isnan(deviation) else f"{GLUE}±{GLUE}{deviation * 100:.1f}"
    return f"{mean * 100:.1f}{spread}"


def _yardstick(name: str, values: pd.DataFrame) -> list[str]:
    """Return the row of a classifier, which has all images in one place."""
    accuracy = _accuracy(values["accuracy"].mean(), values["accuracy"].std(ddof=1))
    return [f"{name}, pooled", "", accuracy, *[""] * (len(COLUMNS) - 2)]
