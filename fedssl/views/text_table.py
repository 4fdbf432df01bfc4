"""A table as it is written: what a terminal and a page both show."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Args:
        title: What it holds.
        columns: Their names.
        rows: Cells as they are written, a row each.
        note: What its columns are.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
