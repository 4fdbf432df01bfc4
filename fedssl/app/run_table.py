"""The list of runs as a table for terminals of any width: a run's path is always whole, and other columns give way to it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import JustifyMethod
from rich.table import Table

from fedssl.core.console import folded, pieces_of
from fedssl.core.durations import brief_duration
from fedssl.core.text import one_line
from fedssl.record.overview import Overview, State

STYLES = {State.running: "green", State.failed: "red", State.killed: "red"}
"""Colors of states on a terminal."""

APART = 2
"""Columns are this many places apart."""

FEWEST = 2
"""Paths are broken into lines before fewer than this many columns stand beside them."""

NARROWEST = 20
"""A path that is broken into lines takes at least this many places, or as many as its longest part."""

WIDEST_TAGS = 20
"""The column of tags takes at most this many places; more tags stand on further lines."""


@dataclass(frozen=True)
class _Column:
    """A column beside the paths.

    Args:
        head: Its head.
        rank: The columns with the lowest ranks are shown where there is no room for all.
        cell: Returns its text for a run.
        justify: On which side of the column its texts stand.
        most: It takes at most this many places; None: as many as its longest text.
    """

    head: str
    rank: int
    cell: Callable[[Overview], str]
    justify: JustifyMethod = "right"
    most: int | None = None

    def width(self, runs: Sequence[Overview]) -> int:
        """Return how many places the column takes."""
        needed = max(map(cell_len, (self.head, *map(self.cell, runs))))
        return needed if self.most is None else min(needed, self.most)


def _accuracy(run: Overview) -> str:
    return "-" if math.isnan(run.accuracy) else f"{run.accuracy * 100:.1f}"


def _rounds(run: Overview) -> str:
    if run.rounds == run.num_rounds:
        return str(run.rounds)
    return f"{run.rounds}/{run.num_rounds or '?'}"


def _tags(run: Overview) -> str:
    return one_line(", ".join(run.tags))


COLUMNS = (
    _Column("state", 0, lambda run: str(run.state), "left"),
    _Column("rounds", 3, _rounds),
    _Column("EMA %", 1, _accuracy),
    _Column("time", 5, lambda run: brief_duration(run.seconds)),
    _Column("age", 4, lambda run: brief_duration(run.age)),
    _Column("tags", 2, _tags, "left", WIDEST_TAGS),
)


def run_table(runs: Sequence[Overview], width: int) -> tuple[Table, list[str]]:
    """Return a table with one row per run, and the heads of the columns for which it has no room.

    Columns give way until the paths fit. Where they do not fit beside two columns, they are broken behind slashes and commas, and a
    name that alone is too wide is broken behind its hyphens, or anywhere if it has none.

    Args:
        runs: The runs; the column of tags is left out if none of them has any.
        width: Width of the terminal, in places.
    """
    paths = [one_line(str(run.path)) for run in runs]
    columns = [column for column in COLUMNS if column.head != "tags" or any(map(_tags, runs))]
    by_rank = sorted(columns, key=lambda column: column.rank)
    widths = {column.head: column.width(runs) for column in columns}

    def room(count: int) -> int:
        """Return the places for paths beside the most important columns."""
        return width - 1 - sum(widths[column.head] + APART for column in by_rank[:count])

    longest = max(map(cell_len, paths))
    longest_part = max(cell_len(part) for path in paths for part in pieces_of(path))
    beside = [count for count in range(len(columns), FEWEST - 1, -1) if longest <= room(count)]
    below = [count for count in range(FEWEST, 0, -1) if min(longest_part, NARROWEST) <= room(count)]
    count = next(iter([*beside, *below]), 0)
    kept = [column for column in columns if column in by_rank[:count]]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("run", overflow="fold", width=min(longest, max(1, room(count))))
    for column in kept:
        table.add_column(
            column.head, justify=column.justify, overflow="fold", width=widths[column.head]
        )
    for run, path in zip(runs, paths, strict=True):
        cells = [column.cell(run) for column in kept]
        table.add_row(folded(path, max(1, room(count))), *cells, style=STYLES.get(run.state))
    return table, [column.head for column in columns if column not in kept]
