"""The accuracies of a grid as rows by columns: a column for each value of a factor, a row for each line that is otherwise the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedssl.views.comparison.gather import Line
from fedssl.views.comparison.groups import Group
from fedssl.views.comparison.labels import differing, label_lines, plain

MOST_COLUMNS = 9
"""A pivot of more columns would not fit a screen."""


@dataclass(frozen=True)
class Pivot:
    """Lines laid out as rows by columns.

    Args:
        factors: The settings whose values are the columns.
        columns: Values of the factors, a text for each column.
        rows: For each row, its label and the labels of its lines by column; a column that it lacks is left out.
    """

    factors: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]


def pivot_of(groups: Sequence[Group]) -> Pivot | None:
    """Return the lines of a comparison as rows by columns, or None if they are no grid.

    The columns are what tells groups apart; in a single group of lines of one name, they are the values of the last setting in which
    lines differ. At least two rows must have at least two columns.

    Args:
        groups: The groups of the comparison.
    """
    lines = [line for group in groups for line in group.lines if group.factors or len(groups) == 1]
    factors = tuple(dict.fromkeys(key for group in groups for key in group.factors))
    if not factors and len(groups) == 1:
        keys = differing([line.settings for line in lines])
        factors = tuple(keys[-1:]) if len(keys) > 1 and "name" not in keys else ()
    if not factors:
        return None
    rest = [{k: v for k, v in line.settings.items() if k not in factors} for line in lines]
    kinds = [frozenset(own.items()) for own in rest]
    unique = dict(zip(kinds, rest, strict=True))
    labels = dict(zip(unique, label_lines(list(unique.values())), strict=True))
    rows: dict[str, dict[str, str]] = {}
    for line, kind in zip(lines, kinds, strict=True):
        rows.setdefault(labels[kind], {})[_column(line, factors)] = line.label
    columns = tuple(dict.fromkeys(_column(line, factors) for line in lines))
    if sum(len(row) > 1 for row in rows.values()) < 2 or len(columns) > MOST_COLUMNS:
        return None
    return Pivot(factors, columns, rows)


def _column(line: Line, factors: Sequence[str]) -> str:
    values = [plain(line.settings[key]) for key in factors if key in line.settings]
    return ", ".join(values) or "-"
