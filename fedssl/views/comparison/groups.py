"""Which line of a comparison each line is measured against: lines of the same data, or lines that share a factor, form a group."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.views.comparison.agreement import UNDECIDING
from fedssl.views.comparison.gather import Line
from fedssl.views.comparison.labels import Settings, bare, differing, plain

DATA = ("data.", "federation.")
"""Beginnings of the settings that decide which images and labels a client holds."""

LABELS = "federation.labels."
"""Beginning of the settings that decide only which images have labels."""

METHOD = "method.kind"
"""The factor whose first value is the baseline of a grid."""


@dataclass(frozen=True)
class Group:
    """Lines that are measured against one of them.

    Args:
        lines: The lines; the first one is the baseline. A line without a baseline is a group of its own.
        factors: Settings that tell the group from the others: dotted name to value as ``--set`` takes it; empty if there is one
            group, or if its lines do not share them.
    """

    lines: tuple[Line, ...]
    factors: Mapping[str, str]


def grouped(
    lines: Sequence[Line], baseline: str | None, *, by_data: bool = True
) -> tuple[Group, ...]:
    """Return the lines in groups, each group with its baseline first.

    A named baseline is a line's label, which is then the baseline of all (its parts in any order), or settings such as ``method.kind=supervised``: the baseline
    of a line is the line that has these settings and otherwise the same as the line itself. Without a named baseline:

    - In a grid of methods and other settings under one name, the method of the first line is the baseline.
    - Else lines whose settings of ``[data]`` and ``[federation]`` are equal form a group, and the first of them is the baseline. A line
      that is alone joins the one group that differs in labels only, for it may be the bound. If no two lines have equal settings
      there, all lines are one group.

    Args:
        lines: The lines, in the order in which they were found.
        baseline: A label or settings, as `chosen` takes them; None: none is named.
        by_data: Whether lines form groups without a named baseline; if false, all lines are one group.

    Raises:
        InputError: No line is the named baseline.
    """
    if baseline is None and by_data and _is_grid_of_methods(lines):
        baseline = f"{METHOD}={bare(lines[0].settings[METHOD])}"
    if baseline is None:
        groups = _by_data(lines) if by_data else [list(lines)]
    elif named := _called(baseline, lines):
        groups = [sorted(lines, key=lambda line: line is not named[0])]
    else:
        groups = _under_baselines(lines, baseline)
    factors = _factors(groups)
    return tuple(
        Group(tuple(group), {key: bare(group[0].settings[key]) for key in factors})
        for group in groups
    )


def chosen(text: str, lines: Sequence[Line], option: str) -> list[Line]:
    """Return the lines that a text names: the line of this label, or all lines with settings such as ``name=all-labels``.

    Args:
        text: A label, whose parts may stand in any order, or ``KEY=VALUE``, several separated by commas. A value is written as in
            labels or as ``--set`` takes it.
        lines: The lines of the comparison.
        option: Name of the option that holds the text, for the error.

    Raises:
        InputError: The text names no line.
    """
    named = _called(text, lines)
    if named:
        return named
    wanted = _settings(text)
    if not wanted:
        near = suggest_nearest(text, [line.label for line in lines])
        raise InputError(option, f"no line is called {text!r}", near)
    for key, value in wanted.items():
        known = [line.settings[key] for line in lines if key in line.settings]
        if not known:
            near = suggest_nearest(key, {"name", *differing([line.settings for line in lines])})
            raise InputError(option, f"no line has the setting {key}", near)
        if not any(_is_value(value, each) for each in known):
            near = suggest_nearest(value, set(map(plain, known)))
            raise InputError(option, f"no line has {key}={value}", near)
    found = [line for line in lines if _has(line.settings, wanted)]
    if not found:
        raise InputError(option, f"no line has {text}")
    return found


def _under_baselines(lines: Sequence[Line], baseline: str) -> list[list[Line]]:
    """Return the lines in groups, each under the baseline that differs from its lines in no factor but those of the text."""
    bases = chosen(baseline, lines, "--baseline")
    sections = {f"{key.rpartition('.')[0]}." for key in _settings(baseline)}
    factors = [
        key
        for key in differing([line.settings for line in lines])
        if key != "name" and not any(key.startswith(section) for section in sections)
    ]
    by_closeness = (factors, _deciding(lines), _deciding(lines, labels=False))
    groups: dict[str, list[Line]] = {base.label: [base] for base in bases}
    for line in lines:
        if line in bases:
            continue
        found = (_alike(line, bases, keys) for keys in by_closeness)
        own = next(filter(None, found), [])
        name = own[0].label if len(own) == 1 else line.label
        groups.setdefault(name, []).append(line)
    return list(groups.values())


def _alike(line: Line, bases: Iterable[Line], keys: Sequence[str]) -> list[Line]:
    """Return the baselines whose settings of some keys are those of a line."""
    own = _values(line, keys)
    return [base for base in bases if _values(base, keys) == own]


def _deciding(lines: Sequence[Line], *, labels: bool = True) -> list[str]:
    """Return the settings in which lines differ and that decide which images clients hold, and which labels if they are asked for."""
    keys = dict.fromkeys(key for line in lines for key in line.settings)
    return [
        key
        for key in keys
        if key.startswith(DATA) and key not in UNDECIDING
        if labels or not key.startswith(LABELS)
        if len({line.settings.get(key) for line in lines}) > 1
    ]


def _by_data(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines in groups of the same images and labels; a line that is alone may join a group that differs in labels only."""
    deciding = _deciding(lines)
    by_all: dict[tuple[str | None, ...], list[Line]] = {}
    for line in lines:
        by_all.setdefault(_values(line, deciding), []).append(line)
    groups = [group for group in by_all.values() if len(group) > 1]
    if not groups:
        return [list(lines)]
    images = _deciding(lines, labels=False)
    firsts = [group[0] for group in groups]
    for (line,) in [group for group in by_all.values() if len(group) == 1]:
        alike = _alike(line, firsts, images)
        if len(alike) == 1:
            groups[firsts.index(alike[0])].append(line)
        else:
            groups.append([line])
    return groups


def _is_grid_of_methods(lines: Sequence[Line]) -> bool:
    """Say whether lines of one name differ in their methods and in another setting too, as those of a sweep do."""
    keys = differing([line.settings for line in lines])
    others = [key for key in keys if key.partition(".")[0] != "method"]
    return METHOD in keys and bool(others) and "name" not in keys


def _factors(groups: Sequence[Sequence[Line]]) -> list[str]:
    """Return the settings that all lines of a group share and that differ among groups."""
    firsts = [group[0].settings for group in groups]
    return [
        key
        for key in differing(firsts)
        if key != "name" and all(key in first for first in firsts)
        if all(len({line.settings.get(key) for line in group}) == 1 for group in groups)
    ]


def _settings(text: str) -> dict[str, str]:
    """Return the settings that a text such as ``method.kind=supervised,train.lr=0.1`` names; empty if it names none."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(sign for _, sign, _ in pairs):
        return {}
    return {key.strip(): value.strip() for key, _, value in pairs}


def _called(text: str, lines: Sequence[Line]) -> list[Line]:
    """Return the line with a label; if there is none, the lines whose labels have the same parts in another order."""
    exact = [line for line in lines if line.label == text]
    return exact or [line for line in lines if _parts(line.label) == _parts(text)]


def _parts(label: str) -> list[str]:
    """Return the name and the settings of a label such as ``cells (alpha 0.2, supervised)``, sorted."""
    return sorted(filter(None, map(str.strip, re.split("[,()]", label))))


def _has(own: Settings, wanted: Mapping[str, str]) -> bool:
    return all(key in own and _is_value(value, own[key]) for key, value in wanted.items())


def _is_value(text: str, value: str) -> bool:
    """Say whether a text names a value, which is JSON: as labels write it, or as ``--set`` takes it."""
    return text in (plain(value), bare(value))


def _values(line: Line, keys: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(line.settings.get(key) for key in keys)
