"""Files that grow by whole lines: written lines stay readable even if the next write fails."""

import csv
import dataclasses
import io
import os
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from fedssl.core.files import whole_lines
from fedssl.core.text import as_cell, from_cell
from fedssl.record.rows import RoundRow

Row = TypeVar("Row")


class Lines:
    """A text file that grows by one write at a time; a write that fails leaves nothing behind.

    Args:
        path: The file, which is created if it does not exist.
        length: Number of bytes of an existing file to keep; the rest is cut off.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._length = length
        self.cut(length)

    @property
    def length(self) -> int:
        """The length of the file (bytes), which holds whole lines."""
        return self._length

    def append(self, text: str) -> None:
        """Append lines to the file, or nothing if the write fails."""
        content = memoryview(text.encode())
        before = self._length
        try:
            while content:
                content = content[self._file.write(content) :]
        except BaseException:
            self.cut(before)
            raise
        self._length = self._file.tell()

    def cut(self, length: int) -> None:
        """Cut the file off after the first `length` bytes."""
        self._file.truncate(length)
        self._file.seek(length)
        self._length = length

    def sync(self) -> None:
        """Flush the file to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Table(Lines):
    """A CSV file with a line for every row of one dataclass; NaN becomes an empty cell.

    Args:
        path: The file, which is created if it does not exist.
        kind: Dataclass of the rows.
        length: Number of bytes of an existing file to keep; the rest is cut off.
    """

    def __init__(self, path: Path, kind: type[Any], length: int = 0) -> None:
        super().__init__(path, length)
        names = columns_of(kind)
        self._cells = attrgetter(*names)
        self._buffer = io.StringIO(newline="")
        self._writer = csv.writer(self._buffer)
        if length == 0:
            self._write([names])

    def add(self, rows: Iterable[object]) -> None:
        """Append rows in one write."""
        self._write([_written(cell) for cell in self._cells(row)] for row in rows)

    def _write(self, rows: Iterable[list[Any]]) -> None:
        self._buffer.seek(0)
        self._buffer.truncate()
        self._writer.writerows(rows)
        self.append(self._buffer.getvalue())


def _written(value: Any) -> Any:
    if isinstance(value, str):
        return as_cell(value)
    return "" if value != value else value  # only NaN differs from itself


def columns_of(kind: type[Any]) -> list[str]:
    """Return the column names of a table whose rows are of a dataclass."""
    return [field.name for field in dataclasses.fields(kind)]


def has_other_columns(path: Path, kind: type[Any]) -> bool:
    """Return whether a table has a whole first line with other column names than those of a dataclass."""
    if not path.exists():
        return False
    with path.open(encoding="utf-8", newline="") as file:
        first = file.readline()
    return first.endswith("\n") and next(csv.reader([first])) != columns_of(kind)


def read_rows(path: Path, kind: type[Row], length: int | None = None) -> tuple[Row, ...]:
    """Return the rows of a `Table`, equal to the written rows to the bit; an unfinished last line is ignored.

    Args:
        path: The file of the table.
        kind: Dataclass of the rows.
        length: Number of bytes to read; None: the whole file.

    Raises:
        ValueError: The file is not as a `Table` writes it.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    lines = csv.DictReader(io.StringIO(whole_lines(path, length), newline=""))
    return tuple(
        kind(**{name: _cell(kinds[name], text) for name, text in line.items()}) for line in lines
    )


def read_rounds(path: Path, length: int | None = None) -> tuple[RoundRow, ...]:
    """Return the rounds of a `Table`; the arguments are those of `read_rows`.

    Raises:
        ValueError: The file is not as a `Table` writes it, lacks a round, or has a round twice.
    """
    rows = read_rows(path, RoundRow, length)
    if [row.round for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError(f"{path.name} lacks a round or has one twice")
    return rows


def _cell(kind: Any, text: str) -> Any:
    if kind is float:
        return float(text or "nan")
    return from_cell(text) if kind is str else kind(text)
