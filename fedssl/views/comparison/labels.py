"""What to call the lines of a comparison: their names, and what differs among those of one name."""

import json
from collections.abc import Mapping, Sequence

Settings = Mapping[str, str]
"""Dotted name -> value as JSON text."""


def label_lines(settings: Sequence[Settings]) -> list[str]:
    """Return the label of each line, no two the same: ``NAME``, or ``NAME (method.threshold=0.9, ...)``.

    Settings are named that differ among the lines of a name. What only one kind of a section knows is not: that the
    kind differs says it. A setting that a line does not have is left out of its label.

    Args:
        settings: Those of each line, ``name`` among them; no two lines have the same.
    """
    alike: dict[str, list[Settings]] = {}
    for own in settings:
        alike.setdefault(own["name"], []).append(own)
    keys = {name: _differing(lines) for name, lines in alike.items()}
    return [_label(own, keys[own["name"]]) for own in settings]


def _label(own: Settings, keys: Sequence[str]) -> str:
    name = json.loads(own["name"])
    named = ", ".join(f"{key}={_bare(own[key])}" for key in keys if key in own)
    return f"{name} ({named})" if named else name


def _bare(text: str) -> str:
    """Return a value as ``--set`` takes it: a word without its quotes."""
    value = json.loads(text)
    return value if isinstance(value, str) else text


def _differing(lines: Sequence[Settings]) -> list[str]:
    every = dict.fromkeys(key for line in lines for key in line)
    return [key for key in every if _differs(key, lines)]


def _differs(key: str, lines: Sequence[Settings]) -> bool:
    """Say whether a setting tells lines apart that the kind of its section does not."""
    values = [line.get(key) for line in lines]
    section, _, last = key.rpartition(".")
    if None not in values or last in ("kind", "source"):
        return len(set(values)) > 1
    by_kind: dict[str | None, set[str | None]] = {}
    for line, value in zip(lines, values, strict=True):
        kind = line.get(f"{section}.kind", line.get(f"{section}.source"))
        by_kind.setdefault(kind, set()).add(value)
    return any(len(own) > 1 for own in by_kind.values())
