"""Advice for one federation: the lines of the nearest cells, as tables and sentences."""

import shlex
from dataclasses import dataclass

import pandas as pd

from fedssl.app.advice.evidence import ALL_LABELS, best_lines, nearest_cells
from fedssl.app.advice.situation import Situation
from fedssl.core.errors import InputError
from fedssl.views.text_table import TextTable

PLAIN = "labels only"
"""Titles of lines without unlabeled images begin so."""

NOTE = (
    "accuracy of the moving average, %; gain over the best line with labels only (base), seed by seed (of three seeds or more, with its 95 % "
    "interval); gap %: how much of the way to all labels; traffic, work: bytes, and images of a client's step, relative to FedAvg with "
    "labels at all clients (0: clients do not train); best: cannot be told apart from the best line"
)


@dataclass(frozen=True)
class Advice:
    """What the evidence says about one federation.

    Args:
        situation: The federation.
        cells: Rows of the nearest cell of each data set, the nearest data set first; each has a line other than the bound.
    """

    situation: Situation
    cells: list[pd.DataFrame]

    @property
    def best(self) -> pd.DataFrame:
        """The best line of the nearest cell and all that cannot be told apart from it, the best first."""
        return best_lines(_without_bound(self.cells[0]))

    @property
    def settings(self) -> list[str]:
        """Settings of the best line, as for ``--set``."""
        return shlex.split(str(self.best.iloc[0]["settings"]))

    def tables(self) -> list[TextTable]:
        """Return a table for each data set."""
        return [self._table(rows) for rows in self.cells]

    def sentences(self) -> list[str]:
        """Return what follows from the nearest cell, a sentence or two a line."""
        best, others = self.best.iloc[0], self.best.iloc[1:]
        seeds = int(best["seeds"])
        tell = (
            "one seed, which tells little, cannot tell"
            if seeds == 1
            else f"{seeds} seeds cannot tell"
        )
        said = [f"Best there: {best['title']}, {_percent(best['accuracy'])} %{_over_labels(best)}."]
        if len(others):
            least = self.best.sort_values(["work", "traffic"], kind="stable").iloc[0]
            said.append(
                f"{tell[0].upper()}{tell[1:]} these from it: {'; '.join(others['title'])}. Least work: {least['title']}."
            )
        elif seeds == 1:
            said.append("That is one seed, which tells little.")
        if self.best["title"].str.startswith(PLAIN).any() or best["gain"] <= 0:
            said.append("So unlabeled images gained nothing there that is sure.")
        return [*said, *self._how_far()]

    def _how_far(self) -> list[str]:
        """Return how the situation differs from the nearest cell, and where another data set disagrees."""
        near, own, said = self.cells[0].iloc[0], self.situation, []
        ratio = own.labels_per_class / (near["labels"] / near["classes"])
        if not 1 / 3 <= ratio <= 3:
            more = "more" if ratio > 1 else "fewer"
            factor = max(ratio, 1 / ratio)
            said.append(
                f"Your federation has {factor:.0f} times {more} labels a class, so it may be otherwise there."
            )
        if not abs(own.label_skew - near["label_skew"]) <= 0.2:
            said.append(
                f"Its skew is {own.label_skew:.2f}, that of the cell {near['label_skew']:.2f}."
            )
        for rows in self.cells[1:]:
            titles = set(best_lines(_without_bound(rows))["title"])
            if self.best.iloc[0]["title"] not in titles:
                said.append(
                    f"On {rows.iloc[0]['data']}, others are best: {'; '.join(sorted(titles))}."
                )
        return said

    def _table(self, rows: pd.DataFrame) -> TextTable:
        best = set(best_lines(_without_bound(rows))["title"])
        ordered = rows.sort_values("accuracy", ascending=False, kind="stable")
        first = rows.iloc[0]
        cell = Situation(
            *(first[name] for name in ("place", "label_skew", "labels", "classes", "clients"))
        )
        return TextTable(
            f"{first['data']}: {cell.describe()}",
            ("line", "accuracy", "gain", "gap %", "traffic", "work", "best"),
            [_cells(row, best) for _, row in ordered.iterrows()],
            NOTE,
        )


def advise(
    evidence: pd.DataFrame, situation: Situation, most_traffic: float | None = None
) -> Advice:
    """Return the advice for a situation.

    Args:
        evidence: All measured lines.
        situation: The federation.
        most_traffic: Lines that send more than this, relative to FedAvg with labels at all clients, are left out; None: no limit.
            A line counts as it is shown, with one decimal.

    Raises:
        InputError: Nothing was measured for such a federation, or all lines send more than allowed.
    """
    traffic = evidence["traffic"].round(1)
    allowed = evidence if most_traffic is None else evidence[traffic <= most_traffic]
    cells = [rows for rows in nearest_cells(allowed, situation) if len(_without_bound(rows))]
    if cells:
        return Advice(situation, cells)
    choices = _without_bound(evidence[evidence["place"] == situation.place])
    if choices.empty:
        raise InputError("advise", f"nothing was measured with labels at {situation.place}")
    least = traffic[choices.index].min()
    raise InputError("--traffic", "every line sends more", f"the least is {least:g}")


def _without_bound(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["title"] != ALL_LABELS]


def _over_labels(row: pd.Series) -> str:
    is_baseline = row["title"] == row["baseline"]
    return "" if is_baseline else f", {_gain(row)} points over {row['baseline']}"


def _cells(row: pd.Series, best: set[str]) -> list[str]:
    gap = "-" if pd.isna(row["gap_closed"]) else f"{row['gap_closed'] * 100:.0f}"
    gain = "base" if row["title"] == row["baseline"] else _gain(row)
    return [
        str(row["title"]),
        _percent(row["accuracy"]),
        gain,
        gap,
        f"{row['traffic']:.1f}",
        f"{row['work']:.1f}",
        "yes" if row["title"] in best else "",
    ]


def _percent(share: float) -> str:
    return f"{share * 100:.1f}"


def _gain(row: pd.Series) -> str:
    low, high = row["gain_low"], row["gain_high"]
    interval = "" if pd.isna(low) else f" ({low * 100:+.1f} to {high * 100:+.1f})"
    return f"{row['gain'] * 100:+.1f}{interval}"
