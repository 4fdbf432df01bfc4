"""The learning curves of a comparison as a figure for a paper: one column wide, with letters that can be edited."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from fedssl.views.pictures.plots import (
    ACCURACY,
    COLORS,
    add_legend,
    draw_panel,
    palette_for,
    save_figure,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMN = 3.3
"""Width of the figure, inches: a column of the usual two-column styles."""

LETTERS_A_LINE = 42
"""A label of the legend is broken into lines of this many letters, which fit the column."""

HEIGHT = 2.3
"""Height of the figure without its legend, inches."""

LETTERS: Any = {"font.size": 8, "pdf.fonttype": 42, "svg.fonttype": "none"}
"""Size of the letters (points); a PDF has whole fonts, as publishers ask for, and an SVG has text."""


def plot_for_paper(curves: "pd.DataFrame", paths: list[Path]) -> None:
    """Draw the accuracy of several lines by round; the figure has no title, because a paper has a caption.

    Args:
        curves: Columns as in `fedssl.views.comparison.statistics.curves_of`.
        paths: The files to write, PDF or SVG by their suffixes.
    """
    lines = dict(iter(curves.groupby("label", sort=False)))
    with matplotlib.rc_context(LETTERS):
        figure = Figure(figsize=(COLUMN, HEIGHT), layout="constrained")
        axes = figure.subplots()
        draw_panel(axes, ACCURACY, lines, palette_for(len(lines)), band=len(lines) <= len(COLORS))
        axes.set_title("")
        axes.set_ylabel("accuracy, %")
        height = add_legend(figure, axes, beside=False, size=7, width=LETTERS_A_LINE)
        figure.set_size_inches(COLUMN, HEIGHT + height)
        for path in paths:
            save_figure(figure, path)
