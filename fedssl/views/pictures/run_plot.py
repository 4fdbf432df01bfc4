"""The picture of one run: accuracy by round, and the pseudo-labels that are right and used by round."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from fedssl.record.rows import RoundRow
from fedssl.views.pictures.plots import COLORS, Picture, bound_percent, whole_numbers
from fedssl.views.unknown_truth import is_right_unknown

Column = Callable[[RoundRow], float]

CURVES: tuple[tuple[tuple[str, str, Column], ...], ...] = (
    (
        ("global model", COLORS[5], lambda row: row.server_accuracy),
        ("its moving average (EMA)", COLORS[0], lambda row: row.ema_accuracy),
    ),
    (
        ("right", COLORS[2], lambda row: row.pseudo_label_accuracy),
        ("used", COLORS[4], lambda row: row.pseudo_label_coverage),
    ),
)
"""The curves of each panel: name, color, and a function from a round's row to a share in [0, 1]."""


def run_figure(rounds: Sequence[RoundRow], title: str) -> Picture:
    """Draw accuracy and pseudo-labels by round; every other phase is shaded, and all phases are named.

    Args:
        rounds: The finished rounds.
        title: Title of the picture.
    """
    figure = Picture(figsize=(10, 4), layout="constrained", dpi=100)
    shares = [(row.pseudo_label_accuracy, row.pseudo_label_coverage) for row in rounds]
    has_truth = any(right == right for right, _ in shares)
    unknown = not has_truth and any(is_right_unknown(*share) for share in shares)
    labels = f"pseudo-labels{' (how many are right is not known)' if unknown else ''}"
    for axes, curves, what in zip(figure.subplots(1, 2), CURVES, ("accuracy", labels), strict=True):
        for name, color, column in curves:
            _curve(axes, rounds, column, name, color)
        bound_percent(axes)
        axes.set_title(what, fontsize=10)
        axes.set_xlabel("round")
        axes.set_ylabel("%")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(whole_numbers())
        _mark_phases(axes, rounds)
        if axes.lines:
            axes.legend(frameon=False, fontsize=9, loc="lower right")
        else:
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color="gray")
    figure.suptitle(title, fontsize=10, parse_math=False, wrap=True)
    return figure


def _curve(
    axes: Axes,
    rounds: Sequence[RoundRow],
    column: Callable[[RoundRow], float],
    name: str,
    color: str,
) -> None:
    """Draw a share in percent over the rounds in which it is known; draw nothing if it is never known."""
    places = np.array([row.round for row in rounds])
    values = np.array([column(row) for row in rounds]) * 100
    known = ~np.isnan(values)
    if known.any():
        axes.plot(places[known], values[known], color=color, label=name, linewidth=1.6)


def _mark_phases(axes: Axes, rounds: Sequence[RoundRow]) -> None:
    """Shade every other phase and write each phase's method at the top, if there are several phases."""
    phases = sorted({row.phase for row in rounds})
    if len(phases) < 2:
        return
    for phase in phases:
        own = [row for row in rounds if row.phase == phase]
        start, end = own[0].round - 0.5, own[-1].round + 0.5
        if phase % 2:
            axes.axvspan(start, end, color="black", alpha=0.06, linewidth=0)
        axes.text(
            (start + end) / 2, 1.0, own[0].method, transform=axes.get_xaxis_transform(),
            ha="center", va="top", fontsize=8, color="gray",
        )  # fmt: skip
