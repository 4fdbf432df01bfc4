"""A table of texts, which both a terminal of any width and a page can show."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.constrain import Constrain
from rich.table import Table

from fedssl.core.console import folded

APART = 2
"""Columns of a table are this many places apart on a terminal."""

MOST_FOR_NAMES = 2
"""A word of the first column takes at most this part of a terminal's width, one half, so that figures stay whole beside it."""

NOTE_WIDTH = 60
"""The title and the note of a narrow table take this many places of a terminal that has them."""


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Args:
        title: Title of the table; empty for none.
        columns: Names of the columns.
        rows: The texts of the cells, row by row.
        note: Explanation of the columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class OnScreen:
    """A table as a terminal shows it: as several tables, one below the other, where its columns do not fit side by side.

    Args:
        grid: The table; each of the tables begins with its first column.
    """

    grid: TextTable

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield the title, the tables and the note."""

        def length(text: str) -> int:
            return console.render_str(text).cell_len

        first = (self.grid.columns[0], *(row[0] for row in self.grid.rows))
        longest_word = max(length(word) for text in first for word in text.split())
        name = min(longest_word, options.max_width // MOST_FOR_NAMES)
        room = options.max_width - name - APART - 1  # a place is left free at the edge
        blocks = _blocks(self.grid, room, length)
        tables = [_table(self.grid, block, name, room) for block in blocks]
        widest = max(console.measure(table, options=options).maximum for table in tables)
        width = min(options.max_width, max(widest, NOTE_WIDTH))
        if self.grid.title:
            yield Constrain(_beside(console, self.grid.title, "table.title"), width)
        yield from tables
        if self.grid.note:
            yield Constrain(_beside(console, self.grid.note, "table.caption"), width)


def _beside(console: Console, text: str, style: str) -> RenderableType:
    """Return a title or a note as rich shows them."""
    shown = console.render_str(text)
    shown.stylize(style)
    return shown


def _table(grid: TextTable, block: dict[int, int], name: int, room: int) -> Table:
    """Return the first column and a block of others.

    Args:
        grid: The whole table.
        block: The columns, by number, and the places that they need.
        name: Places for the longest word of the first column; a longer one is broken.
        room: Places for the columns beside the first one.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column(grid.columns[0], overflow="fold")
    for column, needed in block.items():
        width = min(needed, room)
        table.add_column(grid.columns[column], justify="right", overflow="fold", width=width)
    for row in grid.rows:
        first = " ".join(folded(word, name) for word in row[0].split(" "))
        table.add_row(first, *(row[column] for column in block))
    return table


def _blocks(grid: TextTable, room: int, length: Callable[[str], int]) -> list[dict[int, int]]:
    """Return which columns, from 1, stand side by side, each with the places that its texts need.

    Args:
        grid: The table.
        room: Places for the columns beside the first one.
        length: Returns how many places a text takes on the terminal.
    """
    blocks: list[dict[int, int]] = [{}]
    for number, name in enumerate(grid.columns[1:], 1):
        needed = max(length(text) for text in (name, *(row[number] for row in grid.rows)))
        if blocks[-1] and sum(blocks[-1].values(), needed) + APART * len(blocks[-1]) > room:
            blocks.append({})
        blocks[-1][number] = needed
    return blocks
