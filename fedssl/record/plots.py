"""Pictures of how runs went, and what all pictures share."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedssl.record.rows import RoundRow

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe & Ito's palette, told apart by color-blind readers."""

Color = str | tuple[float, float, float, float]
Floats = npt.NDArray[np.float64]


class Picture(Figure):
    """A figure that a notebook shows, whether or not it has been told to show figures."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        FigureCanvasAgg(self).print_png(content)  # type: ignore[no-untyped-call]
        return content.getvalue()


Column = Callable[[RoundRow], float]
Seeds = Sequence[Sequence[RoundRow]]


def plot_comparison(runs: Mapping[str, Seeds], title: str, path: Path) -> None:
    """Draw learning curves of several experiments, mean over seeds with the range as a band.

    Where there is virtual time, a second row draws accuracy against it and against the bytes sent. Beyond eight
    experiments there are no bands, and the legend stands beside the curves.

    Args:
        runs: Name -> one sequence of rounds a seed.
        title: What is compared.
        path: PNG to write.
    """
    crowded = len(runs) > len(COLORS)
    timed = any(not np.isnan(row.virtual_seconds) for seeds in runs.values() for row in seeds[0])
    rows = 2 if timed else 1
    figure = Figure(
        figsize=(12.5 if crowded else 10, 0.3 + 3.7 * rows), layout="constrained", dpi=110
    )
    panels = figure.subplots(rows, 2, squeeze=False).ravel().tolist()
    left, right, *cost = panels
    palette: Sequence[Color] = COLORS
    if crowded:
        palette = [colormaps["tab20"](i % 20) for i in range(len(runs))]
    band = not crowded
    for (name, seeds), color in zip(runs.items(), palette, strict=False):
        _curve(left, seeds, _accuracy, name, color, "-", band=band)
        _curve(right, seeds, lambda row: row.pseudo_label_accuracy, None, color, "-", band=band)
        _curve(right, seeds, lambda row: row.pseudo_label_coverage, None, color, ":", band=False)
        for axes, spent in zip(cost, (_seconds_spent, _megabytes_spent), strict=False):
            _curve(axes, seeds, _accuracy, None, color, "-", band=band, against=spent)
    left.set_title("accuracy of the global model's moving average (EMA)", fontsize=10)
    right.set_title("pseudo-labels: right (line), used (dots)", fontsize=10)
    for axes, unit in zip(
        panels, ("round", "round", "virtual seconds", "MB, up and down"), strict=False
    ):
        axes.set_xlabel(unit)
        axes.set_ylabel("%")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes, what in zip(cost, ("virtual time", "traffic"), strict=False):
        axes.set_title(f"accuracy (EMA) by {what}", fontsize=10)
    if crowded:
        figure.legend(frameon=False, fontsize=8, loc="outside right center")
    else:
        left.legend(frameon=False, fontsize=9, loc="lower right")
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def _accuracy(row: RoundRow) -> float:
    return row.ema_accuracy


def _seconds_spent(rows: Sequence[RoundRow]) -> Floats:
    return np.array([row.virtual_seconds for row in rows])


def _megabytes_spent(rows: Sequence[RoundRow]) -> Floats:
    return np.cumsum([row.bytes_up + row.bytes_down for row in rows]) / 1e6


def _rounds(rows: Sequence[RoundRow]) -> Floats:
    return np.arange(1.0, len(rows) + 1)


def _curve(
    axes: Axes,
    seeds: Seeds,
    column: Column,
    label: str | None,
    color: Color,
    style: str,
    *,
    band: bool,
    against: Callable[[Sequence[RoundRow]], Floats] = _rounds,
) -> None:
    """Draw the mean over seeds of a share in percent, round by round, against the mean of what had been spent by then."""
    length = min(len(rows) for rows in seeds)
    values = np.array([[column(row) for row in rows[:length]] for rows in seeds]) * 100
    places = np.array([against(rows[:length]) for rows in seeds]).mean(0)
    known = ~(np.isnan(values).all(axis=0) | np.isnan(places))
    if not known.any():
        return
    values, places = values[:, known], places[known]
    axes.plot(places, np.nanmean(values, 0), style, color=color, label=label, linewidth=1.6)
    if len(values) > 1 and band:
        least, most = np.nanmin(values, 0), np.nanmax(values, 0)
        axes.fill_between(places, least, most, color=color, alpha=0.15, linewidth=0)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, its folder made if need be."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
