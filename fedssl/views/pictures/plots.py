"""The picture of a comparison of runs, and the palette and functions that all pictures share."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:  # the picture of a federation must not wait for pandas
    import pandas as pd

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe & Ito's palette, which color-blind readers can tell apart."""

LONG_LABEL = 24
"""Longer labels stand below each other in a legend."""

SHORTEST_LINE = 10
"""The labels of a legend are never broken into lines of fewer letters."""

WIDTH_OF_LEGEND = 0.96
"""A legend below the curves takes at most this share of a figure's width; the viewer of an SVG may have wider letters."""

BESIDE = 0.45
"""A legend beside the curves takes at most this share of a figure's width."""

Color = str | tuple[float, float, float, float]


class Picture(Figure):
    """A figure that a notebook shows even if it is not configured to show figures."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        FigureCanvasAgg(self).print_png(content)  # type: ignore[no-untyped-call]
        return content.getvalue()


def comparison_figure(curves: "pd.DataFrame", title: str) -> Picture:
    """Draw the learning curves of several lines: means over seeds, with a band from the worst to the best seed.

    A second panel draws pseudo-labels, if there are any. If there is virtual time, a second row draws accuracy against virtual
    time and against the bytes sent. The legend is outside the curves. Beyond eight lines, no bands are drawn.

    Args:
        curves: Columns as in `fedssl.views.comparison.statistics.curves_of`.
        title: Title of the picture.
    """
    lines = dict(iter(curves.groupby("label", sort=False)))
    crowded = len(lines) > len(COLORS)
    panels = [
        panel
        for panel in PANELS
        if panel is ACCURACY or curves[list(panel.values)].notna().any(axis=None)
    ]
    timed = curves["virtual_seconds"].notna().any()
    panels = panels if timed else [panel for panel in panels if panel.against == "round"]
    is_used = bool((curves["pseudo_label_coverage"] > 0).any())
    if is_used and curves["pseudo_label_accuracy"].isna().all():
        panels = [ONLY_USED if panel is PSEUDO_LABELS else panel for panel in panels]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width = 5 * columns + (2.5 if crowded else 0)
    figure = Picture(figsize=(width, 0.6 + 3.7 * rows), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for one in axes[len(panels) :]:
        one.set_visible(False)
    for one, panel in zip(axes, panels, strict=False):
        draw_panel(one, panel, lines, palette_for(len(lines)), band=not crowded)
    add_legend(figure, axes[0], beside=crowded)
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


@dataclass(frozen=True)
class Panel:
    """One coordinate system of a picture of curves.

    Args:
        title: Title of the panel.
        against: Column of the horizontal axis.
        unit: Name of the horizontal axis.
        values: Columns of shares on the vertical axis; the first one is drawn as a line and has a band, others are dotted.
    """

    title: str
    against: str
    unit: str
    values: tuple[str, ...]


ACCURACY = Panel(
    "accuracy of the global model's moving average (EMA)", "round", "round", ("ema_accuracy",)
)
PSEUDO_LABELS = Panel(
    "pseudo-labels: right (line), used (dots)",
    "round",
    "round",
    ("pseudo_label_accuracy", "pseudo_label_coverage"),
)
ONLY_USED = Panel(
    "pseudo-labels used (how many are right is not known)",
    "round",
    "round",
    ("pseudo_label_coverage",),
)
PANELS = (
    ACCURACY,
    PSEUDO_LABELS,
    Panel(
        "accuracy (EMA) by virtual time", "virtual_seconds", "virtual seconds", ("ema_accuracy",)
    ),
    Panel("accuracy (EMA) by traffic", "megabytes", "MB, up and down", ("ema_accuracy",)),
)


def palette_for(count: int) -> Sequence[Color]:
    """Return as many colors as there are lines; beyond the twentieth they repeat."""
    if count <= len(COLORS):
        return COLORS[:count]
    return [colormaps["tab20"](i % 20) for i in range(count)]


def draw_panel(
    axes: Axes,
    panel: Panel,
    lines: "Mapping[Any, pd.DataFrame]",
    palette: Sequence[Color],
    *,
    band: bool,
) -> None:
    """Draw a panel's curves of all lines, in percent.

    Args:
        axes: Where to draw.
        panel: What to draw.
        lines: The curves of each line by its label.
        palette: A color for each line.
        band: Whether to shade the range from the worst to the best seed.
    """
    solid, *dotted = panel.values
    for (label, line), color in zip(lines.items(), palette, strict=True):
        _curve(axes, line, panel.against, solid, color, label=str(label), band=band)
        for share in dotted:
            _curve(axes, line, panel.against, share, color, style=":", band=False)
    bound_percent(axes)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.unit)
    axes.set_ylabel("%")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.against == "round":
        axes.xaxis.set_major_locator(whole_numbers())


def bound_percent(axes: Axes) -> None:
    """Let the axis of shares go from 0 to 100 % where all of them are equal; else it would hold shares that there cannot be."""
    if axes.lines and axes.dataLim.height == 0:
        axes.set_ylim(0, 100)


def whole_numbers() -> MaxNLocator:
    """Return what places ticks at whole numbers only, also on an axis of one round."""
    return MaxNLocator(integer=True, min_n_ticks=1)


def add_legend(
    figure: Figure, axes: Axes, *, beside: bool, size: float = 9, width: int = 90
) -> float:
    """Add a legend of the lines that a panel draws, outside the curves, and return its height in inches.

    The legend has as many columns as fit the figure. Labels that are too long for one column are broken into shorter lines.

    Args:
        figure: The figure.
        axes: The panel.
        beside: Put the legend beside the curves; if false, below them.
        size: Size of the letters, in points.
        width: Longer labels are broken into lines of this many letters.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return 0.0
    most = 1 if beside or max(map(len, labels)) > LONG_LABEL else min(4, len(labels))
    shapes = [(columns, width) for columns in range(most, 0, -1)]
    shapes += [(1, narrower) for narrower in range(width - 5, SHORTEST_LINE - 1, -5)]
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    room = figure.bbox.width * (BESIDE if beside else WIDTH_OF_LEGEND)
    for columns, letters in shapes:
        legend = figure.legend(
            handles,
            [textwrap.fill(label, letters) for label in labels],
            frameon=False,
            fontsize=size,
            loc="outside right center" if beside else "outside lower center",
            ncols=columns,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)  # a dollar sign in a label is text and not a formula
        box = legend.get_window_extent(renderer)
        if box.width <= room or (columns, letters) == shapes[-1]:
            break
        legend.remove()
    return float(box.height) / figure.dpi


def _curve(
    axes: Axes,
    line: "pd.DataFrame",
    against: str,
    share: str,
    color: Color,
    *,
    band: bool,
    style: str = "-",
    label: str | None = None,
) -> None:
    """Draw a share in percent against what was spent, both as means over seeds, where both are known."""
    known = line.dropna(subset=[against, share])
    if known.empty:
        return
    axes.plot(known[against], known[share] * 100, style, color=color, label=label, linewidth=1.6)
    if band and known["seeds"].max() > 1:
        low, high = (known[f"{share}_{end}"] * 100 for end in ("low", "high"))
        axes.fill_between(known[against], low, high, color=color, alpha=0.15, linewidth=0)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file, and create the file's folder if it does not exist."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
