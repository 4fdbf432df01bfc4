"""Charts as Vega-Lite describes them: what is drawn is data, and the page's own colors and fonts draw it.

Colors are CSS variables (``var(--c0)`` ...), so that a chart follows the page into dark mode; they are Okabe & Ito's, told
apart by color-blind readers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Row = Mapping[str, Any]

COLORS = tuple(f"var(--c{number})" for number in range(8))
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
HEIGHT = 260
MOST_POINTS = 1000
"""Points of a line: more than a screen shows."""


@dataclass(frozen=True)
class Chart:
    """A chart of a page, and the table behind it.

    Args:
        name: Of its place in the page.
        title: What it shows.
        note: How to read it, in a sentence or two.
        rows: The table: what is drawn, a mapping from column to value a row.
        spec: How Vega-Lite draws the rows.
        wide: Whether it takes the page's whole width.
    """

    name: str
    title: str
    note: str
    rows: Sequence[Row]
    spec: Spec
    wide: bool = False


@dataclass(frozen=True)
class Band:
    """A stretch of rounds that is shaded and named, such as a phase."""

    first: int
    last: int
    name: str


LARGEST = 1e30
"""The largest magnitude of a number of a record; what is beyond it was damaged, or comes from somebody who lied."""


def is_out_of_range(value: float) -> bool:
    """Say whether a number is too large for a record; NaN, which is a number that is not known, is not."""
    return abs(value) > LARGEST


def number(value: float | None, digits: int = 2) -> float | None:
    """Return a number as a chart takes it: rounded, and None where it is not known or out of range."""
    if value is None or is_out_of_range(value) or math.isnan(value):
        return None
    return round(float(value), digits)


def significant(value: float, digits: int = 6) -> float | None:
    """Return a number of any size as a chart takes it: to so many significant digits, and None as `number` does."""
    known = number(value, 300)
    return None if known is None else float(f"{known:.{digits}g}")


def thinned(rows: Sequence[Row], most: int = MOST_POINTS) -> list[Row]:
    """Return at most so many rows, evenly spaced; the last one is always among them."""
    step = -(-len(rows) // most) if rows else 1
    return list(rows[::-1][::step])[::-1]


def palette(names: Sequence[str], *, dashed: bool) -> Spec:
    """Return the color of each of several lines, and its dashes: there are eight colors.

    Args:
        names: The lines.
        dashed: Whether lines of different colors differ by their dashes too.
    """
    legend = {
        "orient": "top",
        "title": None,
        "columns": 1 if max(map(len, names), default=0) > 24 else 2 if len(names) > 2 else 4,
        "labelLimit": 320,
        "symbolType": "stroke",
        "symbolOpacity": 1,
    }
    colors = [COLORS[i % len(COLORS)] for i in range(len(names))]
    channel: Spec = {"field": "line", "type": "nominal", "legend": legend}
    looks: Spec = {"color": {**channel, "scale": {"domain": list(names), "range": colors}}}
    if dashed or len(names) > len(COLORS):
        each = 1 if dashed else len(COLORS)
        dashes = [DASHES[(i // each) % len(DASHES)] for i in range(len(names))]
        looks["strokeDash"] = {**channel, "scale": {"domain": list(names), "range": dashes}}
    return looks


def quantity(
    field: str, title: str, domain: tuple[float, float] | None = None, *, nice: bool = False
) -> Spec:
    """Return the channel of a number.

    Args:
        field: Column.
        title: Of its axis.
        domain: Least and largest value of the axis; None: of the values that are drawn.
        nice: Whether the axis ends with round numbers, and has lines across the chart.
    """
    scale: Spec = {"zero": False} if domain is None else {"domain": list(domain)}
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {**scale, "nice": nice},
        "axis": {"grid": nice, "tickCount": 6},
    }


def span(
    rows: Sequence[Row], names: Sequence[str], *, zero: bool = False, log: bool = False
) -> tuple[float, float]:
    """Return the least and the largest value of some columns, apart from each other.

    Args:
        rows: The table; what is None is not counted.
        names: Columns.
        zero: Whether 0 is among the values in any case.
        log: Whether it is for an axis of powers of ten.
    """
    values = [row[name] for row in rows for name in names if row[name] is not None]
    values += [0.0] if zero or not values else []
    least, most = min(values), max(values)
    if most > least:
        return least, most
    return (least / 2, most * 2) if log else (least - 0.5, most + 0.5)
