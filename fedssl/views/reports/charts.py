"""Charts as specifications for Vega-Lite: charts are data, and the page draws them with its own colors and fonts.

Colors are CSS variables (``var(--c0)`` ...), so that a chart follows the page into dark mode. The palette is Okabe &
Ito's, which color-blind readers can tell apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Row = Mapping[str, Any]

COLORS = tuple(f"var(--c{number})" for number in range(8))
"""Colors of lines, in the order of their use."""

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
"""Dash patterns of lines: lengths of strokes and gaps in pixels; the first pattern is a solid line."""

HEIGHT = 260
"""Most charts are this high (pixels)."""

TICKS = 6
"""About so many values stand at an axis of numbers."""

LARGE = 1e7
"""Numbers from this on stand at an axis with an exponent, such as the loss of a model that has diverged."""

LETTERS_AT_AXIS = 140
"""So many letters fit side by side below a chart that takes the whole width of the page."""

MOST_POINTS = 1000
"""A line has at most this many points, which is more than a screen shows."""


@dataclass(frozen=True)
class Chart:
    """A chart of a page, and the table behind it.

    Args:
        name: Id of the chart's element in the page.
        title: Title above the chart.
        note: One or two sentences on how to read the chart.
        rows: The table that is drawn; each row maps columns to values.
        spec: Vega-Lite's specification of how the rows are drawn.
        wide: Whether the chart takes the whole width of the page.
    """

    name: str
    title: str
    note: str
    rows: Sequence[Row]
    spec: Spec
    wide: bool = False


@dataclass(frozen=True)
class Band:
    """A range of rounds, first and last included, that is shaded and named, such as a phase."""

    first: int
    last: int
    name: str


LARGEST = 1e30
"""The largest magnitude of a number in a record. Larger numbers come from a damaged file or from someone who lied."""


def is_out_of_range(value: float) -> bool:
    """Say whether a number is too large for a record; NaN stands for an unknown number and is in range."""
    return abs(value) > LARGEST


def number(value: float | None, digits: int = 2) -> float | None:
    """Return a number for a chart: rounded, or None if the number is unknown or out of range."""
    if value is None or is_out_of_range(value) or math.isnan(value):
        return None
    return round(float(value), digits)


def significant(value: float, digits: int = 6) -> float | None:
    """Return a number of any size as a chart takes it: to so many significant digits, and None as `number` does."""
    known = number(value, 300)
    return None if known is None else float(f"{known:.{digits}g}")


def thinned(rows: Sequence[Row], most: int = MOST_POINTS) -> list[Row]:
    """Return at most `most` rows, evenly spaced; the last row is always returned."""
    step = -(-len(rows) // most) if rows else 1
    return list(rows[::-1][::step])[::-1]


def palette(names: Sequence[str], drawn: Sequence[str]) -> Spec:
    """Return the color and the dashes of several lines; thirty-two lines look different, the first four of them even without colors.

    Args:
        names: Names of the lines. A name has its color also where its line has no points, so that colors mean the same in all
            charts of a page.
        drawn: Those of the names whose lines have points; only they are in the legend.
    """
    legend = {
        "orient": "top",
        "title": None,
        "values": list(drawn),
        "columns": 1 if max(map(len, drawn), default=0) > 24 else 2 if len(drawn) > 2 else 4,
        "labelLimit": 320,
        "symbolType": "stroke",
        "symbolOpacity": 1,
    }
    colors = [COLORS[i % len(COLORS)] for i in range(len(names))]
    channel: Spec = {"field": "line", "type": "nominal", "legend": legend}
    # Where the colors begin anew, the dashes are moved by one, so that no line looks like an earlier one.
    dashes = [DASHES[(i + i // len(COLORS)) % len(DASHES)] for i in range(len(names))]
    return {
        "color": {**channel, "scale": {"domain": list(names), "range": colors}},
        "strokeDash": {**channel, "scale": {"domain": list(names), "range": dashes}},
    }


def slanted(names: Sequence[str], *, wide: bool) -> Spec:
    """Return how names stand at a horizontal axis: upright if all of them fit side by side, else slanted.

    Args:
        names: The names.
        wide: Whether the chart takes the whole width of the page.
    """
    room = LETTERS_AT_AXIS if wide else LETTERS_AT_AXIS // 2
    are_numbers = all(name.isdecimal() for name in names)
    fits = are_numbers or sum(len(name) + 2 for name in names) <= room
    return {"labelAngle": 0 if fits else -40, "labelOverlap": True, "labelLimit": 140}


def quantity(
    field: str,
    title: str,
    domain: tuple[float, float] | None = None,
    *,
    nice: bool = False,
    whole: bool = False,
) -> Spec:
    """Return the channel that draws a column of numbers.

    Args:
        field: The column.
        title: Title of the axis.
        domain: Least and largest value of the axis; None: the least and largest value that is drawn.
        nice: Whether the axis ends with round numbers and has lines across the chart.
        whole: Whether only whole numbers stand at the axis, as for rounds and clients: there is no round 1.5.
    """
    scale: Spec = {"zero": False} if domain is None else {"domain": list(domain)}
    written: Spec = {"format": ",d"} if whole else {}
    if not whole and domain is not None and max(map(abs, domain)) >= LARGE:
        written = {"format": ".3~g"}  # 8e+20: Vega leaves no room for labels wider than 200 pixels
    if whole and domain is not None and domain[1] - domain[0] <= TICKS:
        # At a short axis Vega 6 also writes halves, whatever least step it is given.
        values = list(range(math.ceil(domain[0]), math.floor(domain[1]) + 1))
        written |= {"values": values, "tickCount": len(values)}
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {**scale, "nice": nice},
        "axis": {"grid": nice, "tickCount": TICKS, **written},
    }


def span(
    rows: Sequence[Row],
    names: Sequence[str],
    *,
    zero: bool = False,
    log: bool = False,
    whole: bool = False,
    percent: bool = False,
) -> tuple[float, float]:
    """Return the least and the largest value of some columns; the two always differ, so that an axis has a length.

    Where all values are equal, the axis holds no values that there cannot be: it begins at 0, and shares end at 100 %.

    Args:
        rows: The table; values that are None or missing are ignored.
        names: The columns.
        zero: Whether 0 counts as a value.
        log: Whether the axis is logarithmic.
        whole: Whether the values are whole numbers, such as rounds; a single one has half a step to either side.
        percent: Whether the values are shares in percent.
    """
    values = [row[name] for row in rows for name in names if row.get(name) is not None]
    values += [0.0] if zero or not values else []
    least, most = min(values), max(values)
    if most > least:
        return least, most
    if log:
        return least / 2, most * 2
    if whole:
        return least - 0.5, most + 0.5
    if percent:
        return 0.0, 100.0
    return (min(0.0, 2 * least), max(0.0, 2 * most)) if least else (0.0, 1.0)
