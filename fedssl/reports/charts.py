"""Charts as Vega-Lite describes them: what is drawn is data, and the page's own colors and fonts draw it.

Colors are CSS variables (``var(--c0)`` ...), so that a chart follows the page into dark mode; they are Okabe & Ito's, told
apart by color-blind readers, and lines differ by their dashes too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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


def number(value: float | None, digits: int = 2) -> float | None:
    """Return a number as a chart takes it: rounded, and None where it is not known."""
    return None if value is None or math.isnan(value) else round(float(value), digits)


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
        "columns": 4 if sum(map(len, names)) < 50 else 2,
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


def lines(
    rows: Sequence[Row],
    x: str,
    names: Sequence[str],
    unit: str,
    bands: Sequence[Band] = (),
    *,
    zero: bool = False,
    log: bool = False,
) -> Spec:
    """Draw columns of a table against another, with a rule that follows the pointer and names every value.

    Args:
        rows: The table.
        x: Column along the page, such as ``"round"``.
        names: Columns drawn, each a line.
        unit: Of their values.
        bands: Stretches of `x` to shade.
        zero: Whether the axis begins with 0.
        log: Whether its steps are powers of ten.
    """
    along = quantity(x, x, _range(rows, [x]))
    up = quantity("value", unit, _range(rows, names, zero=zero), nice=True)
    if log:
        up["scale"] |= {"type": "log", "nice": False}
        up["axis"]["tickCount"] = 4
    folded = [{"fold": list(names), "as": ["line", "value"]}, {"filter": "isValid(datum.value)"}]
    drawn = {"x": along, "y": up, **palette(names, dashed=True)}
    tooltip = [{"field": x, "type": "quantitative"}]
    tooltip += [{"field": name, "type": "quantitative", "format": ",.4~f"} for name in names]
    return {
        "height": HEIGHT,
        "layer": [
            *_shaded(x, bands),
            {"transform": folded, "mark": {"type": "line", "strokeWidth": 2}, "encoding": drawn},
            {
                "params": [_pointed_at(x)],
                "mark": {"type": "rule", "color": "var(--muted)"},
                "encoding": {
                    "x": along,
                    "opacity": {
                        "condition": {"param": "pointed", "empty": False, "value": 0.6},
                        "value": 0,
                    },
                    "tooltip": tooltip,
                },
            },
            {
                "transform": [{"filter": {"param": "pointed", "empty": False}}, *folded],
                "mark": {"type": "point", "filled": True, "size": 55},
                "encoding": {"x": along, "y": up, "color": drawn["color"]},
            },
        ],
    }


def curves(
    rows: Sequence[Row],
    x: str,
    names: Sequence[str],
    unit: str,
    *,
    bands: bool,
    dashed: bool = True,
) -> Spec:
    """Draw several lines, each with a band around it, and say of the point that is pointed at what it is.

    Args:
        rows: Columns ``line``, `x`, and in `unit` ``mean``, ``worst`` and ``best``; None where not known.
        x: Column along the page.
        names: Lines, in the order of their colors.
        unit: Of the values.
        bands: Whether bands are drawn.
    """
    along = quantity(x, x, _range(rows, [x]))
    up = quantity("mean", unit, _range(rows, ["mean", "worst", "best"]), nice=True)
    looks = palette(names, dashed=False)
    # Not the nearest point, as in `lines`: Vega-Lite 6 loses texts from a tooltip then.
    pointed = {
        "name": "pointed",
        "select": {"type": "point", "on": "pointerover", "clear": "pointerout"},
    }
    band = {
        "mark": {"type": "area", "opacity": 0.13},
        "encoding": {
            "x": along,
            "y": {**up, "field": "worst"},
            "y2": {"field": "best"},
            "color": looks["color"],
        },
    }
    point = {
        "params": [pointed],
        "mark": {"type": "point", "filled": True, "size": 120},
        "encoding": {
            "x": along,
            "y": up,
            "color": looks["color"],
            "opacity": {"condition": {"param": "pointed", "empty": False, "value": 1}, "value": 0},
            "tooltip": [{"field": name} for name in ("line", x, "mean", "worst", "best")],
        },
    }
    line = {
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {"x": along, "y": up, **looks},
    }
    return {"height": HEIGHT, "layer": [*([band] if bands else []), line, point]}


def intervals(rows: Sequence[Row], seeds: Sequence[Row], unit: str, *, zero: bool) -> Spec:
    """Draw a mean with its interval for each line, and its seeds as ticks.

    Args:
        rows: Columns ``line``, ``mean``, ``low`` and ``high``; the latter two are None where there is no interval.
        seeds: Columns ``line``, ``seed`` and ``value``.
        unit: Of the values.
        zero: Whether 0 is marked: no difference.
    """
    names = [row["line"] for row in rows]
    y = {
        "field": "line",
        "type": "nominal",
        "sort": names,
        "title": None,
        "axis": {"labelLimit": 260, "grid": False, "ticks": False, "domain": False},
    }
    values = [{"v": row["value"]} for row in seeds]
    values += [{"v": row[name]} for row in rows for name in ("mean", "low", "high")]
    domain = _range(values + ([{"v": 0.0}] if zero else []), ["v"])

    def x(field: str) -> Spec:
        return quantity(field, unit, domain, nice=True)

    rule = {"mark": {"type": "rule", "color": "var(--muted)"}, "encoding": {"x": {"datum": 0}}}
    tooltip = [{"field": name} for name in ("line", "mean", "low", "high")]
    color = {"value": COLORS[0]}
    return {
        "height": max(90, 30 * len(rows)),
        "layer": [
            *([rule] if zero else []),
            {
                "data": {"values": list(seeds)},
                "mark": {"type": "tick", "thickness": 2, "size": 12, "opacity": 0.7},
                "encoding": {
                    "y": y, "x": x("value"), "color": {"value": COLORS[1]},
                    "tooltip": [{"field": name} for name in ("line", "seed", "value")],
                },
            },
            {
                "mark": {"type": "rule", "strokeWidth": 3},
                "encoding": {"y": y, "x": x("low"), "x2": {"field": "high"}, "color": color},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
                "encoding": {"y": y, "x": x("mean"), "color": color, "tooltip": tooltip},
            },
        ],
    }  # fmt: skip


def heatmap(
    x: str,
    y: str,
    value: str,
    tooltip: Iterable[str],
    *,
    num_rows: int,
    domain: tuple[float, float] | None = (0, 100),
    x_values: Sequence[Any] | None = None,
    y_order: Sequence[str] | None = None,
) -> Spec:
    """Draw a table's values as cells of color.

    Args:
        x, y, value: Columns.
        tooltip: Columns that are shown of a cell.
        num_rows: Different values of `y`.
        domain: Values of the darkest and the brightest color; None: the least and the largest there are.
        x_values: Those values of `x` that are written; None: all for which there is room.
        y_order: Values of `y` from above; None: ascending.
    """
    axis = {"grid": False, "labelOverlap": True, "ticks": False, "domain": False}
    written = {} if x_values is None else {"values": list(x_values)}
    scale: Spec = {"scheme": "viridis"} | ({} if domain is None else {"domain": list(domain)})
    return {
        "height": max(120, min(22 * num_rows, 560)),
        "mark": {"type": "rect"},
        "encoding": {
            "x": {"field": x, "type": "ordinal", "axis": {**axis, **written, "labelAngle": 0}},
            "y": {"field": y, "type": "ordinal", "axis": axis, "sort": y_order},
            "color": {
                "field": value,
                "type": "quantitative",
                "scale": scale,
                "legend": {"orient": "top", "gradientThickness": 10, "title": value},
            },
            "tooltip": [{"field": name} for name in tooltip],
        },
    }


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


def _range(rows: Sequence[Row], names: Sequence[str], *, zero: bool = False) -> tuple[float, float]:
    """Return the least and the largest value of some columns, apart from each other."""
    values = [row[name] for row in rows for name in names if row[name] is not None]
    values += [0.0] if zero or not values else []
    least, most = min(values), max(values)
    return (least, most) if most > least else (least - 0.5, most + 0.5)


def _pointed_at(x: str) -> Spec:
    return {
        "name": "pointed",
        "select": {
            "type": "point",
            "fields": [x],
            "nearest": True,
            "on": "pointermove",
            "clear": "pointerout",
        },
    }


def _shaded(x: str, bands: Sequence[Band]) -> list[Spec]:
    """Return the layers that shade every other stretch and write the name of each above it."""
    if len(bands) < 2:
        return []
    values = [
        {"from": band.first, "to": band.last, "phase": band.name, "shade": number % 2}
        for number, band in enumerate(bands)
    ]
    along: Spec = {
        "x": {"field": "from", "type": "quantitative", "title": x},
        "x2": {"field": "to"},
    }
    return [
        {
            "data": {"values": values},
            "mark": {"type": "rect", "color": "var(--band)"},
            "encoding": {
                **along,
                "opacity": {"field": "shade", "type": "quantitative", "scale": None, "legend": None},
            },
        },
        {
            "data": {"values": values},
            "mark": {
                "type": "text", "align": "left", "baseline": "top", "dx": 4,
                "dy": {"expr": "datum.shade ? 16 : 3"}, "color": "var(--muted)",
            },
            "encoding": {"x": along["x"], "y": {"value": 0}, "text": {"field": "phase"}},
        },
    ]  # fmt: skip
