"""Specifications of line charts: columns of a table against another column, and curves of several lines with bands."""

from collections.abc import Sequence

from fedssl.views.reports.charts import HEIGHT, Band, Row, Spec, palette, quantity, span

FEW = 30
"""Lines with at most this many points have their points marked: a line of one point would be invisible."""


ROUND = "round"
"""The column of rounds, which are whole numbers."""

PERCENT = "%"
"""The unit of shares, which are at most 100."""


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
    """Draw columns of a table against another column; a rule follows the pointer and a tooltip names every value.

    Args:
        rows: The table.
        x: Column of the horizontal axis, such as ``"round"``.
        names: Columns to draw, one line per column.
        unit: Unit of the values.
        bands: Ranges of `x` to shade.
        zero: Whether the axis of values includes 0.
        log: Whether the axis of values is logarithmic.
    """
    # Axes, wide enough for all values and for all bands: a number may have been recorded in one phase only.
    ends = [{x: end} for band in bands for end in (band.first, band.last)]
    along = quantity(x, x, span([*rows, *ends], [x], whole=x == ROUND), whole=x == ROUND)
    domain = span(rows, names, zero=zero, log=log, percent=unit == PERCENT)
    up = quantity("value", unit, domain, nice=True)
    if log:
        up["scale"] |= {"type": "log", "nice": False}
        up["axis"]["tickCount"] = 4
    # Data: the columns become rows (line, value), so that one mark draws all lines; empty cells are left out.
    folded = [{"fold": list(names), "as": ["line", "value"]}, {"filter": "isValid(datum.value)"}]
    # Layers, from back to front: shaded bands, the lines, the rule with the tooltip, a point on each line.
    known = [name for name in names if any(row.get(name) is not None for row in rows)]
    drawn = {"x": along, "y": up, **palette(names, known)}
    tooltip = [{"field": x, "type": "quantitative"}]
    tooltip += [{"field": name, "type": "quantitative", "format": ",.4~f"} for name in known]
    return {
        "height": HEIGHT,
        "layer": [
            *_shaded(along, bands),
            {"transform": folded, "mark": line_mark(rows), "encoding": drawn},
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
) -> Spec:
    """Draw several lines with a band around each; a tooltip names the values of the point under the pointer.

    Args:
        rows: Columns ``line``, `x`, ``mean``, ``worst`` and ``best``, the last three in `unit`; None if not known.
        x: Column of the horizontal axis.
        names: Names of the lines, in the order of their colors.
        unit: Unit of the values.
        bands: Whether bands are drawn.
    """
    # Axes, wide enough for the bands.
    along = quantity(x, x, span(rows, [x], whole=x == ROUND), whole=x == ROUND)
    domain = span(rows, ["mean", "worst", "best"], percent=unit == PERCENT)
    up = quantity("mean", unit, domain, nice=True)
    with_points = {row["line"] for row in rows}
    looks = palette(names, [name for name in names if name in with_points])
    # Layers. Unlike in `lines`, the tooltip is not that of the nearest point: there, Vega-Lite 6 drops texts.
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
        "mark": line_mark(rows),
        "encoding": {"x": along, "y": up, **looks},
    }
    return {"height": HEIGHT, "layer": [*([band] if bands else []), line, point]}


def line_mark(rows: Sequence[Row]) -> Spec:
    """Return the mark of a line; its points are marked if there are few."""
    return {"type": "line", "strokeWidth": 2, "point": {"size": 25} if len(rows) <= FEW else False}


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


def _shaded(x: Spec, bands: Sequence[Band]) -> list[Spec]:
    """Return the layers that shade every other band and write the name of each band at its top; `x` is the channel of the lines."""
    if len(bands) < 2:
        return []
    values = [
        {"from": band.first, "to": band.last, "phase": band.name, "shade": number % 2}
        for number, band in enumerate(bands)
    ]
    along: Spec = {"x": {**x, "field": "from"}, "x2": {"field": "to"}}
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
