"""Files that grow by whole lines: what is there stays readable, whatever happens while the next is written."""

import csv
import dataclasses
import io
import os
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from fedssl.core.text import as_cell, from_cell
from fedssl.record.rows import RoundRow

Row = TypeVar("Row")


class Lines:
    """A text file that grows by one write at a time, of which nothing stays if it fails.

    Args:
        path: The file; made if it is not there.
        length: Bytes to keep of what it holds.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._length = length
        self.cut(length)

    @property
    def length(self) -> int:
        """Bytes written, in whole lines."""
        return self._length

    def append(self, text: str) -> None:
        """Write lines at the end."""
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
        """Forget everything after so many bytes."""
        self._file.truncate(length)
        self._file.seek(length)
        self._length = length

    def sync(self) -> None:
        """Write through to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class Table(Lines):
    """A CSV file with a line for every row of one kind, NaN as an empty cell.

    Args:
        path: The file.
        kind: Dataclass of its rows.
        length: Bytes to keep of what it holds.
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
    return "" if value != value else value  # what differs from itself is NaN


def columns_of(kind: type[Any]) -> list[str]:
    """Return the columns of a table of rows of one kind."""
    return [field.name for field in dataclasses.fields(kind)]


def has_other_columns(path: Path, kind: type[Any]) -> bool:
    """Say whether a table has a first line that is not that of this kind."""
    if not path.exists():
        return False
    with path.open(encoding="utf-8", newline="") as file:
        first = file.readline()
    return first.endswith("\n") and next(csv.reader([first])) != columns_of(kind)


def whole_lines(path: Path, length: int | None = None) -> str:
    """Read a file up to the end of its last whole line: one without an end is being written, or will never be.

    Args:
        path: The file.
        length: Bytes of it to read; None: all.
    """
    with path.open("rb") as file:
        content = file.read(-1 if length is None else length)
    return content[: content.rfind(b"\n") + 1].decode()


def read_rows(path: Path, kind: type[Row], length: int | None = None) -> tuple[Row, ...]:
    """Read what a `Table` holds in whole lines, to the bit.

    Args:
        path: The file.
        kind: Dataclass of its rows.
        length: Bytes of it to read; None: all.

    Raises:
        ValueError: It is not what was written.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    lines = csv.DictReader(io.StringIO(whole_lines(path, length), newline=""))
    return tuple(
        kind(**{name: _cell(kinds[name], text) for name, text in line.items()}) for line in lines
    )


def read_rounds(path: Path, length: int | None = None) -> tuple[RoundRow, ...]:
    """Read the rounds that a `Table` holds; arguments as in `read_rows`.

    Raises:
        ValueError: It is not what was written, or lacks a round.
    """
    rows = read_rows(path, RoundRow, length)
    if [row.round for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError(f"{path.name} lacks a round or has one twice")
    return rows


def _cell(kind: Any, text: str) -> Any:
    if kind is float:
        return float(text or "nan")
    return from_cell(text) if kind is str else kind(text)
