"""The specification of a heat map: a table drawn as cells of color."""

from collections.abc import Iterable, Sequence
from typing import Any

from fedssl.views.reports.charts import Spec


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
        x, y, value: Columns of the horizontal axis, of the vertical axis and of the color.
        tooltip: Columns that a cell's tooltip shows.
        num_rows: Number of different values of `y`.
        domain: Values of the darkest and the brightest color; None: the least and the largest value.
        x_values: Values of `x` that are written on the axis; None: all values for which there is room.
        y_order: Values of `y` from top to bottom; None: ascending.
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
