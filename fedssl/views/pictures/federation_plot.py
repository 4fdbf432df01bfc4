"""The picture of a federation: the images and labels of each client, and how large and how fast clients are."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from fedssl.data.federation import Federation
from fedssl.views.federation_table import known_counts
from fedssl.views.pictures.plots import COLORS, Picture, save_figure

MOST_CLIENTS_DRAWN = 60
"""The picture draws at most this many clients one by one."""

MOST_NAMES = 30
"""The axis names at most this many classes."""

GRAY = "#BBBBBB"

LARGEST_BUBBLE = 170.0
"""The bubble of the largest count has this much area (points squared) on top of the area that every bubble has."""

Counts = npt.NDArray[np.int64]


def plot_federation(
    federation: Federation,
    names: Sequence[str],
    title: str,
    path: Path,
    seconds: npt.NDArray[np.float64] | None = None,
    deadline: float | None = None,
) -> None:
    """Write the picture of a federation to a PNG file; see `federation_figure` for the other arguments."""
    save_figure(federation_figure(federation, names, title, seconds, deadline), path)


def federation_figure(
    federation: Federation,
    names: Sequence[str],
    title: str,
    seconds: npt.NDArray[np.float64] | None = None,
    deadline: float | None = None,
) -> Picture:
    """Draw labeled and unlabeled images by client and class as bubbles, each client's size, and virtual round times.

    Beyond 60 clients, only 60 clients are drawn, evenly spaced by size, and the title says so. Two more panels then
    show all clients: their sizes in order, and how many classes they hold.

    Args:
        federation: The drawn federation.
        names: Name of each client.
        title: Title of the picture.
        seconds: Virtual seconds of each client's round, (K,); None without virtual time.
        deadline: Deadline of a round in virtual seconds; None without a deadline.
    """
    # Choose the clients to draw: the picture has room for 60.
    clients = np.arange(federation.num_clients)
    many = len(clients) > MOST_CLIENTS_DRAWN
    if many:
        by_size = np.argsort(-federation.sizes, kind="stable")
        picks = np.linspace(0, len(clients) - 1, MOST_CLIENTS_DRAWN).round().astype(int)
        clients = by_size[picks]
        title += f"\n{len(clients)} of {federation.num_clients:,} clients, largest first"
    # Lay out the panels: two of bubbles and one of sizes share the axis of clients; a last row holds all other panels.
    num_classes = len(federation.data.class_names)
    tall = min(8.0, 0.9 + 0.18 * num_classes)
    heights = [tall, tall, 1.5] + ([1.8] if many or seconds is not None else [])
    width = 3.2 + max(3.0, 0.26 * len(clients))
    figure = Picture(figsize=(width, sum(heights) + 0.8), layout="constrained", dpi=110)
    grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
    upper = figure.add_subplot(grid[0, :])
    middle = figure.add_subplot(grid[1, :], sharex=upper)
    lower = figure.add_subplot(grid[2, :], sharex=upper)
    # Draw the clients one by one; counts are (K, C), and images of unknown class get a row of their own.
    classes = federation.data.class_names
    labeled = federation.class_counts(labeled=True)
    unlabeled = federation.class_counts(labeled=False)
    unknown = federation.sizes - labeled.sum(1) - unlabeled.sum(1)
    elsewhere = f"none here; {len(federation.server_rows):,} at the server, {labeled.sum():,} at other clients"
    _bubbles(upper, labeled[clients], classes, COLORS[1], "labeled images", elsewhere)
    if unknown.any():
        unlabeled, classes = np.column_stack([unlabeled, unknown]), (*classes, "class unknown")
    _bubbles(middle, unlabeled[clients], classes, GRAY, "unlabeled images", "none")
    _sizes(lower, federation, clients, [names[int(client)] for client in clients])
    # Draw all clients together: their sizes and classes if only some are drawn above, and their virtual round times.
    if many or seconds is not None:
        panels = [_all_sizes, _all_classes] if many else []
        columns = np.linspace(0, 6, len(panels) + (seconds is not None) + 1).astype(int)
        for panel, start, stop in zip(panels, columns, columns[1:], strict=False):
            panel(figure.add_subplot(grid[3, start:stop]), federation)
        if seconds is not None:
            _round_times(figure.add_subplot(grid[3, columns[-2] :]), seconds, deadline)
    # Wrap the title to the width of the figure, about 11 characters per inch.
    wrapped = [textwrap.fill(line, width=int(width * 11)) for line in title.splitlines()]
    figure.suptitle("\n".join(wrapped), fontsize=9, parse_math=False)
    return figure


def _bubbles(
    axes: Axes,
    counts: Counts,
    class_names: Sequence[str],
    color: str,
    what: str,
    if_none: str,
) -> None:
    """Draw a bubble for every client and class; its area grows with the count, which it shows if there is room."""
    clients, classes = np.nonzero(counts)
    shown = counts[clients, classes]
    most = max(1, counts.max(initial=0))
    area = 12 + LARGEST_BUBBLE * shown / most
    axes.scatter(clients, classes, s=area, color=color)
    if len(shown) <= 400 and most < 1000:
        ink = "white" if color != GRAY else "black"
        for client, cls, count in zip(clients, classes, shown, strict=True):
            axes.annotate(
                str(count), (client, cls), ha="center", va="center", fontsize=5.5, color=ink
            )
    step = -(-len(class_names) // MOST_NAMES)
    places = list(range(0, len(class_names), step))
    axes.set_yticks(places, [class_names[place] for place in places], fontsize=7, parse_math=False)
    axes.set_ylim(-0.8, len(class_names) - 0.2)
    axes.set_ylabel(f"{what}\nby class", fontsize=8)
    axes.tick_params(axis="x", labelbottom=False)
    if len(shown) == 0:
        axes.text(0.5, 0.5, if_none, transform=axes.transAxes, ha="center", color="gray")
    _plain(axes)


def _sizes(axes: Axes, federation: Federation, clients: Counts, names: Sequence[str]) -> None:
    """Draw each client's images as a bar, with the labeled images on top."""
    labeled, sizes = federation.labeled_sizes[clients], federation.sizes[clients]
    positions = np.arange(len(clients))
    axes.bar(positions, sizes - labeled, color=GRAY, label="unlabeled")
    axes.bar(positions, labeled, bottom=sizes - labeled, color=COLORS[1], label="labeled")
    axes.set_ylabel("images", fontsize=8)
    axes.set_xlabel("client", fontsize=8)
    axes.set_xticks(positions, names, fontsize=7, parse_math=False)
    axes.set_xlim(-0.8, len(clients) - 0.2)
    if len(clients) > 15 or max(map(len, names)) > 3:
        axes.tick_params(axis="x", rotation=90)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _plain(axes)


def _all_sizes(axes: Axes, federation: Federation) -> None:
    """Draw the sizes of all clients, largest first."""
    ordered = np.sort(federation.sizes)[::-1]
    axes.plot(np.arange(1, len(ordered) + 1), ordered, color=COLORS[0])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(f"images of all {len(ordered):,} clients, largest first", fontsize=8)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    _plain(axes)


def _all_classes(axes: Axes, federation: Federation) -> None:
    """Draw how many clients hold how many classes."""
    held = (known_counts(federation) > 0).sum(1)
    axes.hist(held, bins=(np.arange(held.min(), held.max() + 2) - 0.5).tolist(), color=COLORS[0])
    axes.set_title("classes that a client holds", fontsize=8)
    axes.set_ylabel("clients", fontsize=8)
    _plain(axes)


def _round_times(axes: Axes, seconds: npt.NDArray[np.float64], deadline: float | None) -> None:
    """Draw the share of clients that have finished by each virtual second."""
    ordered = np.sort(seconds)
    shares = np.arange(1, len(ordered) + 1) / len(ordered) * 100
    axes.step(ordered, shares, where="post", color=COLORS[0])
    if deadline is not None:
        axes.axvline(deadline, color=COLORS[1], linestyle="--", label=f"deadline {deadline:g} s")
        axes.legend(frameon=False, fontsize=7, loc="lower right")
    axes.set_title("% of clients done after so many virtual seconds", fontsize=8)
    axes.set_ylim(0, 102)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
