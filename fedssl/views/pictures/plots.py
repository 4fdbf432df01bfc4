"""The picture of a comparison of runs, and the palette and functions that all pictures share."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:  # the picture of a federation must not wait for pandas
    import pandas as pd

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe & Ito's palette, which color-blind readers can tell apart."""

Color = str | tuple[float, float, float, float]


class Picture(Figure):
    """A figure that a notebook shows even if it is not configured to show figures."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        FigureCanvasAgg(self).print_png(content)  # type: ignore[no-untyped-call]
        return content.getvalue()


def plot_comparison(curves: "pd.DataFrame", title: str, path: Path) -> None:
    """Draw the learning curves of several lines: means over seeds, with a band from the worst to the best seed.

    If there is virtual time, a second row draws accuracy against virtual time and against the bytes sent. Beyond eight
    lines, no bands are drawn, and the legend is beside the curves.

    Args:
        curves: Columns as in `fedssl.views.comparison.statistics.curves_of`.
        title: Title of the picture.
        path: The PNG file to write.
    """
    lines = dict(iter(curves.groupby("label", sort=False)))
    crowded = len(lines) > len(COLORS)
    rows = 2 if curves["virtual_seconds"].notna().any() else 1
    figure = Figure(
        figsize=(12.5 if crowded else 10, 0.3 + 3.7 * rows), layout="constrained", dpi=110
    )
    panels = figure.subplots(rows, 2, squeeze=False).ravel().tolist()
    palette: Sequence[Color] = COLORS
    if crowded:
        palette = [colormaps["tab20"](i % 20) for i in range(len(lines))]
    for (label, line), color in zip(lines.items(), palette, strict=False):
        _draw_line(panels, line, str(label), color, band=not crowded)
    _describe_panels(panels)
    if crowded:
        figure.legend(frameon=False, fontsize=8, loc="outside right center")
    else:
        panels[0].legend(frameon=False, fontsize=9, loc="lower right")
    for legend in (*figure.legends, *(axes.get_legend() for axes in panels)):
        for text in () if legend is None else legend.get_texts():
            text.set_parse_math(False)  # a dollar sign in a label is text and not a formula
    figure.suptitle(title, fontsize=11, parse_math=False)
    save_figure(figure, path)


def _draw_line(
    panels: Sequence[Axes], line: "pd.DataFrame", label: str, color: Color, *, band: bool
) -> None:
    """Draw one line of a comparison into every panel; only the first panel labels the line."""
    accuracy, pseudo_labels, *costs = panels
    _curve(accuracy, line, "round", "ema_accuracy", color, label=label, band=band)
    _curve(pseudo_labels, line, "round", "pseudo_label_accuracy", color, band=band)
    _curve(pseudo_labels, line, "round", "pseudo_label_coverage", color, style=":", band=False)
    for axes, spent in zip(costs, ("virtual_seconds", "megabytes"), strict=False):
        _curve(axes, line, spent, "ema_accuracy", color, band=band)


def _describe_panels(panels: Sequence[Axes]) -> None:
    titles = (
        ("accuracy of the global model's moving average (EMA)", "round"),
        ("pseudo-labels: right (line), used (dots)", "round"),
        ("accuracy (EMA) by virtual time", "virtual seconds"),
        ("accuracy (EMA) by traffic", "MB, up and down"),
    )
    for axes, (title, unit) in zip(panels, titles, strict=False):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(unit)
        axes.set_ylabel("%")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if unit == "round":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))


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
