"""The measured tables behind the advice, which are a part of the package.

``evidence.csv`` has a row for each line of each cell of the study (``python -m benchmarks.study.pages`` writes it from
the tables of docs/results.md). A cell is one federation: its data, who holds the labels, and its skew.
"""

import math
from importlib import resources

import pandas as pd

from fedssl.app.advice.situation import Situation

CELL = ["data", "place", "label_skew", "labels", "classes", "clients"]
"""Columns that say which cell a row belongs to; they have the names of `Situation`, but for the data."""

ALL_LABELS = "all labels, weak views"
"""Title of the line that knows all labels, which is the bound."""

COLUMNS = [
    *CELL,
    "title",
    "settings",
    "seeds",
    "baseline",
    "accuracy",
    "gain",
    "gain_low",
    "gain_high",
    "gap_closed",
    "letters",
    "traffic",
    "work",
]
"""Columns of the file. ``settings`` are words as for ``--set``; ``baseline`` is the title of the cell's best line without unlabeled images, which
gains are measured against; ``accuracy`` is that of the moving average, and it and the gains and the share of
the gap that is closed are shares of 1; ``letters`` marks lines that cannot be told apart; ``traffic`` (bytes) and ``work`` (images of a client's
step) are relative to FedAvg with labels at all clients."""


def load_evidence() -> pd.DataFrame:
    """Return all rows, with the columns `COLUMNS`."""
    file = resources.files("fedssl.app.advice") / "evidence.csv"
    with file.open(encoding="utf-8") as text:
        return pd.read_csv(text)


def nearest_cells(evidence: pd.DataFrame, situation: Situation) -> list[pd.DataFrame]:
    """Return, for each data set, the rows of the cell that is nearest to a situation; the nearest data set comes first.

    Only cells whose labels are at the same place count. Of these, a data set's cell is the one with the nearest skew; data
    sets are ordered by how near their number of labels of a class is, as a ratio.
    """
    same = evidence[evidence["place"] == situation.place]
    found = []
    for _, rows in same.groupby("data", sort=False):
        away = (rows["label_skew"] - situation.label_skew).abs().fillna(0)
        found.append(rows[rows["label_skew"] == rows["label_skew"].iloc[int(away.argmin())]])
    return sorted(found, key=lambda rows: _ratio_away(rows, situation))


def _ratio_away(rows: pd.DataFrame, situation: Situation) -> float:
    per_class = rows["labels"].iloc[0] / rows["classes"].iloc[0]
    return abs(math.log(per_class / situation.labels_per_class))


def best_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the line of a cell with the highest accuracy and all lines that cannot be told apart from it, the best first."""
    ordered = rows.sort_values("accuracy", ascending=False, kind="stable")
    letters = [set[str]() if pd.isna(own) else set(str(own)) for own in ordered["letters"]]
    alike = [bool(letters[0] & own) for own in letters]
    alike[0] = True
    return ordered[alike]
