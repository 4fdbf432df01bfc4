"""The specification of a chart of means, their intervals and the seeds from which they come."""

from collections.abc import Sequence

from fedssl.views.reports.charts import COLORS, Row, Spec, quantity, span

EDGE = 0.03
"""The axis is longer by this share at either end, so that no mean lies on the name of its line."""


def intervals(
    rows: Sequence[Row],
    seeds: Sequence[Row],
    unit: str,
    limits: tuple[float, float],
    *,
    zero: bool,
) -> Spec:
    """Draw a mean with its interval for each line, and its seeds as ticks.

    Args:
        rows: Columns ``line``, ``mean``, ``low`` and ``high``; ``low`` and ``high`` are None if there is no interval.
        seeds: Columns ``line``, ``seed`` and ``value``.
        unit: Unit of the values.
        limits: The least and the largest possible value: the interval of few seeds may be wider, and ends there.
        zero: Whether 0, which means no difference, is marked.
    """
    # Vertical axis: one entry for each line.
    names = [row["line"] for row in rows]
    y = {
        "field": "line",
        "type": "nominal",
        "sort": names,
        "title": None,
        "axis": {
            "labelLimit": 260,
            "grid": False,
            "ticks": False,
            "domain": False,
            # A label takes several rows: the name first, then one row per setting.
            "labelExpr": "split(replace(datum.label, ' (', ', ('), ', ')",
        },
    }
    # Horizontal axis: wide enough for all seeds and intervals within the limits, and for 0 if it is marked.
    values = [{"v": row["value"]} for row in seeds]
    values += [{"v": row[name]} for row in rows for name in ("mean", "low", "high")]
    least, most = span(values + ([{"v": 0.0}] if zero else []), ["v"])
    edge = EDGE * (most - least)
    domain = max(least - edge, limits[0]), min(most + edge, limits[1])

    def x(field: str) -> Spec:
        return quantity(field, unit, domain, nice=True)

    # Layers, from back to front: the rule at 0, the seeds, the intervals, the means.
    rule = {"mark": {"type": "rule", "color": "var(--muted)"}, "encoding": {"x": {"datum": 0}}}
    tooltip = [{"field": name} for name in ("line", "mean", "low", "high")]
    color = {"value": COLORS[0]}
    return {
        "height": max(90, sum(14 + 16 * (2 + name.count(", ")) for name in names)),
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
                "mark": {"type": "rule", "strokeWidth": 3, "clip": True},
                "encoding": {"y": y, "x": x("low"), "x2": {"field": "high"}, "color": color},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
                "encoding": {"y": y, "x": x("mean"), "color": color, "tooltip": tooltip},
            },
        ],
    }  # fmt: skip
