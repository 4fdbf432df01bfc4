"""A table of texts, which both a terminal and a page can show."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Args:
        title: Title of the table.
        columns: Names of the columns.
        rows: The texts of the cells, row by row.
        note: Explanation of the columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
