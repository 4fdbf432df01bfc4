"""Draw the curves of docs/results.md: ``python -m benchmarks.study.curves fashion`` writes docs/images/results_fashion.png.

A panel is a cell; a curve is the mean over seeds, and its band goes from the worst seed to the best. Lines that are not drawn would
hide those that are: the tables have all of them.
"""

import argparse
from dataclasses import replace

import pandas as pd
from matplotlib.ticker import MultipleLocator

from benchmarks.study.plan import BOUND, LABELS_ONLY, RESULTS, WORDS, Unit, cells
from benchmarks.study.tables import PLACES, name_of_skew
from fedssl.views.pictures.plots import (
    ACCURACY,
    Picture,
    add_legend,
    draw_panel,
    palette_for,
    save_figure,
)

DRAWN = (
    "supervised",
    "supervised_strong",
    "supervised_by_labels",
    "fixmatch",
    "fixmatch_received",
    "flexmatch",
    "preset",
    BOUND,
)
"""The lines that are drawn where a cell has them, in the order of the legend."""


def picture(data: str) -> Picture:
    """Return the curves of all cells of a data set, a row a skew."""
    curves = pd.read_csv(RESULTS / f"{data}_curves.csv", dtype={"skew": str})
    known = set(zip(curves["protocol"], curves["skew"], strict=True))
    drawn = [place for place in cells(data) if place in known]
    skews = list(dict.fromkeys(skew for _, skew in drawn))
    width = max(sum(skew == own for _, own in drawn) for skew in skews)
    figure = Picture(figsize=(3.3 * width, 2.2 + 2.7 * len(skews)), layout="constrained", dpi=130)
    axes = figure.subplots(len(skews), width, squeeze=False, sharey="row", sharex=True)
    for row, skew in zip(axes, skews, strict=True):
        own = [protocol for protocol, where in drawn if where == skew]
        for one, protocol in zip(row, own, strict=False):
            cell = curves[(curves["protocol"] == protocol) & (curves["skew"] == skew)]
            lines = {_title(data, name): cell[cell["line"] == name] for name in DRAWN}
            panel = replace(
                ACCURACY, title=f"labels at {PLACES[protocol]} ({protocol}), {name_of_skew(skew)}"
            )
            draw_panel(one, panel, lines, palette_for(len(DRAWN)), band=True)
            one.xaxis.set_major_locator(MultipleLocator(2 * cell["round"].diff().max()))
        row[0].set_ylim(*_limits(curves[curves["skew"] == skew]))
        for one in row[len(own) :]:
            one.set_visible(False)
    add_legend(figure, max(axes.flat, key=lambda one: len(one.lines)), beside=False)
    return figure


def _limits(curves: pd.DataFrame) -> tuple[float, float]:
    """Return the range of the accuracies that are shown, in percent: from ten points below the ends of labels only to two above all labels.

    A line that falls far below labels only leaves the picture. With it, the other lines could not be told apart.
    """
    ends = curves[curves["round"] == curves["round"].max()].set_index("line")["ema_accuracy"] * 100
    return ends[ends.index.isin(LABELS_ONLY)].min() - 10, ends[BOUND].max() + 2


def _title(data: str, line: str) -> str:
    """Return how the legend calls a line: as the tables of B do, where no line but one has the labels of the received model."""
    return Unit(data, "B", "iid", line, 0).title


def main() -> None:
    """Read the command line, and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", choices=WORDS)
    data = parser.parse_args().data
    save_figure(picture(data), RESULTS.parents[2] / "docs" / "images" / f"results_{data}.png")


if __name__ == "__main__":
    main()
