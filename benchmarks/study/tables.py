"""The tables of the pages, as Markdown, made from the files of results alone."""

import math
from typing import Any

import pandas as pd

from benchmarks.study.plan import RESULTS, Unit, cells, lines_of

COLUMNS = ("EMA", "gain", "gap, %", "like")
"""Columns of each skew: accuracy of the moving average in percent, gain in points over the best line with labels only, with its interval, share of the gap to
all labels that is closed, and letters of lines that cannot be told apart."""

LABELS = "labels right / used, %"
"""Column of a table with one skew alone: which share of the used pseudo-labels is right at the end, and of how many images they are used."""


def tables(data: str) -> dict[str, str]:
    """Return the tables of docs/results.md as Markdown by their names, made from the files of results alone."""
    lines = pd.read_csv(RESULTS / f"{data}_lines.csv", dtype={"skew": str})
    file = RESULTS / f"{data}_yardsticks.csv"
    yardsticks = pd.read_csv(file) if file.exists() else None
    found = {}
    for protocol in dict.fromkeys(lines["protocol"]):
        own = lines[lines["protocol"] == protocol]
        skews = [skew for where, skew in cells(data) if where == protocol]
        rows = [_row(data, line, own, skews) for line in lines_of(data, protocol)]
        if yardsticks is not None:
            named = yardsticks.groupby("classifier", sort=False)
            rows += [_yardstick(str(name), values, skews) for name, values in named]
        head = ["", *COLUMNS, LABELS]
        if len(skews) > 1:
            head = ["", *(f"{name_of_skew(skew)}: {c}" for skew in skews for c in COLUMNS)]
        found[f"{data}-{protocol}"] = "\n".join(
            [markdown(head), markdown(["---"] * len(head)), *(markdown(r) for r in rows if r)]
        )
    return found


def _row(data: str, line: str, lines: pd.DataFrame, skews: list[str]) -> list[str]:
    texts = [Unit(data, lines["protocol"].iloc[0], "", line, 0).title]
    for skew in skews:
        own = lines[(lines["line"] == line) & (lines["skew"] == skew)].to_dict("records")
        texts += _cells(own[0]) if own else ["-"] * len(COLUMNS)
        if len(skews) == 1:
            texts.append(_labels(own[0]) if own else "-")
    return texts if any(text != "-" for text in texts[1:]) else []


def _cells(row: dict[Any, Any]) -> list[str]:
    spread = (
        "" if math.isnan(row["ema_accuracy_std"]) else f" ± {row['ema_accuracy_std'] * 100:.1f}"
    )
    low, high = row["gain_ci95_low"], row["gain_ci95_high"]
    interval = "" if math.isnan(low) else f" ({low * 100:+.1f} to {high * 100:+.1f})"
    gap = "-" if math.isnan(row["gap_closed"]) else f"{row['gap_closed'] * 100:.0f}"
    letters = row["letters"] if isinstance(row["letters"], str) else "-"
    gain = "baseline" if row["line"] == row["baseline"] else f"{row['gain'] * 100:+.1f}{interval}"
    return [f"{row['ema_accuracy'] * 100:.1f}{spread}", gain, gap, letters]


def _labels(row: dict[Any, Any]) -> str:
    shares = row["pseudo_label_accuracy"] * 100, row["pseudo_label_coverage"] * 100
    return "" if math.isnan(shares[0]) else f"{shares[0]:.1f} / {shares[1]:.1f}"


def _yardstick(name: str, values: pd.DataFrame, skews: list[str]) -> list[str]:
    """Return the row of a classifier, which has all images in one place: the same for every protocol and skew."""
    own = values["accuracy"] * 100
    spread = f" ± {own.std(ddof=1):.1f}" if len(own) > 1 else ""
    accuracy = [f"{own.mean():.1f}{spread}", *[""] * (len(COLUMNS) - 1)]
    return [f"{name}, pooled", *accuracy * len(skews), *[""] * (len(skews) == 1)]


def name_of_skew(skew: str) -> str:
    """Return how tables and pictures call a skew."""
    return "IID" if skew == "iid" else f"Dir({skew.removeprefix('0')})"


def markdown(cells: list[str]) -> str:
    """Return a row of a table as Markdown."""
    return f"| {' | '.join(cells)} |"
