"""CSV files with numbers of clients in named columns; every error names the line of the file."""

import csv
import functools
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedssl.core.encodings import decode_text
from fedssl.core.errors import InputError

CLIENT = "client"
"""Name of the column that holds the number of the client."""

MOST_DIGITS = 18
"""A client's number has at most this many digits, which always fit into 64 bits."""


@dataclass(frozen=True)
class Columns:
    """The columns of a file, with one entry per line; the arrays are read-only.

    Args:
        lines: Line in the file of each entry, counted from 1, int64 (n,).
        clients: Client of each entry, 0 or more, int64 (n,).
        numbers: The other columns by name; finite, float64 (n,).
    """

    lines: npt.NDArray[np.int64]
    clients: npt.NDArray[np.int64]
    numbers: Mapping[str, npt.NDArray[np.float64]]


def read_columns(path: Path, names: tuple[str, ...]) -> Columns:
    """Read the clients and some columns of numbers; a file is read again only when it has changed.

    Args:
        path: CSV file whose first line names its columns; ``~`` is the home folder. Empty lines are skipped.
        names: Names of the columns of numbers.

    Raises:
        InputError: There is no such file or column, no line below the first, or a cell that holds no number.
    """
    try:
        file = path.expanduser()
    except RuntimeError:
        problem, remedy = "there is no home folder for '~'", "write the path in full"
        raise InputError(str(path), problem, remedy) from None
    try:
        return _read(file, file.stat().st_mtime_ns, names)
    except FileNotFoundError:
        raise InputError(str(path), f"no such file (tried {file.absolute()})") from None
    except (OSError, csv.Error) as error:
        raise InputError(str(path), f"cannot be read: {error}") from None


@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int, names: tuple[str, ...]) -> Columns:
    lines, clients = [], []
    cells: list[list[float]] = [[] for _ in names]
    text_of_file = decode_text(path, path.read_bytes())
    reader = csv.reader(io.StringIO(text_of_file, newline=""), skipinitialspace=True)
    places = _column_indices(path, [name.strip() for name in next(reader, [])], (CLIENT, *names))
    for row in reader:
        if not any(row):
            continue
        texts = [row[place].strip() if place < len(row) else "" for place in places]
        where = f"{path}, line {reader.line_num}"
        lines.append(reader.line_num)
        clients.append(_parse_client(where, texts[0]))
        for name, text, column in zip(names, texts[1:], cells, strict=True):
            column.append(_parse_number(where, name, text))
    if not lines:
        raise InputError(str(path), "has no line below the names of the columns")
    columns = Columns(
        np.array(lines, dtype=np.int64),
        np.array(clients, dtype=np.int64),
        dict(zip(names, map(np.array, cells), strict=True)),
    )
    for array in (columns.lines, columns.clients, *columns.numbers.values()):
        array.flags.writeable = False
    return columns


def _column_indices(path: Path, header: list[str], names: tuple[str, ...]) -> list[int]:
    for name in names:
        if (count := header.count(name)) != 1:
            problem = f"has {count} columns {name!r}" if count else f"has no column {name!r}"
            raise InputError(str(path), problem, f"its first line names {', '.join(header) or '-'}")
    return [header.index(name) for name in names]


def _parse_client(where: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise InputError(where, f"{CLIENT} is {text!r}", "it must be a whole number, 0 or more")
    return int(text)


def _parse_number(where: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(where, f"{name} is {text!r}, not a finite number")
    return number
