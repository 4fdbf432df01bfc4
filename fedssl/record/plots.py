"""Pictures: who holds what, and how runs went."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedssl.data.federation import Federation
from fedssl.record.rows import RoundRow

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe & Ito's palette, told apart by color-blind readers."""

Color = str | tuple[float, float, float, float]

MOST_CLIENTS_DRAWN = 60


def plot_partition(federation: Federation, title: str, path: Path) -> None:
    """Draw the class counts of every client, unlabeled and labeled apart, as bubbles.

    Beyond 60 clients, 60 evenly spaced ones by size are drawn, and the title says so.

    Args:
        federation: As drawn.
        title: What it is.
        path: PNG to write.
    """
    sizes = federation.sizes()
    shown = np.arange(federation.num_clients)
    if len(shown) > MOST_CLIENTS_DRAWN:
        by_size = np.argsort(-sizes, kind="stable")
        picks = np.linspace(0, len(shown) - 1, MOST_CLIENTS_DRAWN).round().astype(int)
        shown = by_size[picks]
        title += f"\n{len(shown)} of {federation.num_clients:,} clients, largest first"
    unlabeled = federation.class_counts(labeled=False)[shown]
    labeled = federation.class_counts(labeled=True)[shown]
    width = 3.5 + 0.26 * len(shown)
    figure = Figure(figsize=(width, 5.6), layout="constrained", dpi=110)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _bubbles(upper, unlabeled, labeled, federation.data.class_names)
    positions = np.arange(len(shown))
    lower.bar(positions, unlabeled.sum(1), color="#BBBBBB", label="unlabeled")
    lower.bar(positions, labeled.sum(1), bottom=unlabeled.sum(1), color=COLORS[1], label="labeled")
    lower.set_ylabel("images")
    lower.set_xlabel("client")
    lower.set_xticks(positions, [str(client) for client in shown], fontsize=7)
    if len(shown) > 15:
        lower.tick_params(axis="x", rotation=90)
    lower.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(title, width=int(width * 11)), fontsize=9)
    upper.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    _save(figure, path)


def _bubbles(
    axes: Axes,
    unlabeled: npt.NDArray[np.int64],
    labeled: npt.NDArray[np.int64],
    class_names: Sequence[str],
) -> None:
    """Draw gray bubbles of area by unlabeled count, and on them how many labels there are."""
    clients, classes = np.nonzero(unlabeled + labeled)
    counts = unlabeled[clients, classes]
    area = 260 * counts / max(1, unlabeled.max())
    axes.scatter(clients, classes, s=area, color="#BBBBBB", label="unlabeled images")
    clients, classes = np.nonzero(labeled)
    counts = labeled[clients, classes]
    area = 18 + 50 * counts / max(1, labeled.max())
    axes.scatter(clients, classes, s=area, color=COLORS[1], label="labeled images")
    if labeled.max(initial=0) < 100 and len(clients) <= 400:
        for client, cls, count in zip(clients, classes, counts, strict=True):
            axes.annotate(
                str(count), (client, cls), ha="center", va="center", fontsize=6, color="white"
            )
    axes.set_yticks(range(len(class_names)), class_names, fontsize=8)
    axes.set_ylim(-0.8, len(class_names) - 0.2)
    axes.set_ylabel("class")
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plot_comparison(
    runs: Mapping[str, Sequence[Sequence[RoundRow]]], title: str, path: Path
) -> None:
    """Draw learning curves of several experiments, mean over seeds with the range as a band.

    Beyond eight experiments there are no bands, and the legend stands beside the curves.

    Args:
        runs: Name -> one sequence of rounds a seed.
        title: What is compared.
        path: PNG to write.
    """
    crowded = len(runs) > len(COLORS)
    figure = Figure(figsize=(12.5 if crowded else 10, 4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    palette: Sequence[Color] = COLORS
    if crowded:
        palette = [colormaps["tab20"](i % 20) for i in range(len(runs))]
    for (name, seeds), color in zip(runs.items(), palette, strict=False):
        _curve(left, seeds, "ema_accuracy", name, color, "-", band=not crowded)
        _curve(right, seeds, "pseudo_label_accuracy", None, color, "-", band=not crowded)
        _curve(right, seeds, "pseudo_label_coverage", None, color, ":", band=False)
    left.set_title("accuracy of the global model (EMA)", fontsize=10)
    right.set_title("pseudo-labels: right (line), used (dots)", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("round")
        axes.set_ylabel("%")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if crowded:
        figure.legend(frameon=False, fontsize=8, loc="outside right center")
    else:
        left.legend(frameon=False, fontsize=9, loc="lower right")
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _curve(
    axes: Axes,
    seeds: Sequence[Sequence[RoundRow]],
    column: str,
    label: str | None,
    color: Color,
    style: str,
    *,
    band: bool,
) -> None:
    length = min(len(rows) for rows in seeds)
    values = np.array([[getattr(row, column) for row in rows[:length]] for rows in seeds]) * 100
    known = ~np.isnan(values).any(axis=0)
    if not known.any():
        return
    rounds = np.arange(1, length + 1)[known]
    values = values[:, known]
    axes.plot(rounds, values.mean(0), style, color=color, label=label, linewidth=1.6)
    if len(values) > 1 and band:
        axes.fill_between(
            rounds, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0
        )


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
