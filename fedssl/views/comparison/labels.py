"""Labels for the lines of a comparison: the experiment's name, and settings that differ among lines of one name."""

import json
from collections.abc import Mapping, Sequence

Settings = Mapping[str, str]
"""Settings by dotted name, each value as JSON text."""


def label_lines(settings: Sequence[Settings]) -> list[str]:
    """Return a different label for each line: ``NAME``, or ``NAME (method.threshold=0.9, ...)``.

    A label names the settings that differ among the lines of one name. A setting that only one kind of a section has is
    not named: the kind is named and implies the setting. A label leaves out settings that its line does not have.

    Args:
        settings: The settings of each line, ``name`` included; no two lines have equal settings.
    """
    alike: dict[str, list[Settings]] = {}
    for own in settings:
        alike.setdefault(own["name"], []).append(own)
    keys = {name: differing(lines) for name, lines in alike.items()}
    return [_label(own, keys[own["name"]]) for own in settings]


def _label(own: Settings, keys: Sequence[str]) -> str:
    name = json.loads(own["name"])
    named = ", ".join(f"{key}={bare(own[key])}" for key in keys if key in own)
    return f"{name} ({named})" if named else name


def bare(text: str) -> str:
    """Return a value as ``--set`` takes it: text without quotes, everything else as JSON."""
    value = json.loads(text)
    return value if isinstance(value, str) else text


def differences(lines: Mapping[str, Settings]) -> dict[str, dict[str, list[str]]]:
    """Return the settings that differ among lines; a kind is left out if every line has another one.

    Args:
        lines: The settings of each line by its label.

    Returns:
        For each setting, the labels of the lines by their common value, as ``--set`` takes it; a line that lacks the setting is
        left out. Settings are left out as in `label_lines`.
    """
    found = {}
    for key in differing(list(lines.values())):
        values: dict[str, list[str]] = {}
        for label, own in lines.items():
            if key in own:
                values.setdefault(bare(own[key]), []).append(label)
        is_factor = key.rpartition(".")[2] in ("kind", "source") and len(values) == len(lines)
        if key != "name" and not is_factor:
            found[key] = values
    return found


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return a short name for each setting: the end of its dotted name that no other of the settings ends in.

    The kind of a section is named like the section.

    Example:
        >>> short_names(["method.kind", "train.lr", "federation.partition.alpha", "server.lr"])
        {'method.kind': 'method', 'train.lr': 'train.lr', 'federation.partition.alpha': 'alpha', 'server.lr': 'server.lr'}
    """
    whole = {key: key.removesuffix(".kind").split(".") for key in keys}
    names = {}
    for key, parts in whole.items():
        others = [other for each, other in whole.items() if each != key]
        ends = (parts[-length:] for length in range(1, len(parts)))
        alone = (end for end in ends if all(other[-len(end) :] != end for other in others))
        names[key] = ".".join(next(alone, parts))
    return names


def differing(lines: Sequence[Settings]) -> list[str]:
    """Return the settings that distinguish lines, and that the kind of their section does not imply."""
    every = dict.fromkeys(key for line in lines for key in line)
    return [key for key in every if _differs(key, lines)]


def _differs(key: str, lines: Sequence[Settings]) -> bool:
    """Say whether a setting distinguishes lines that the kind of its section does not distinguish."""
    values = [line.get(key) for line in lines]
    section, _, last = key.rpartition(".")
    if None not in values or last in ("kind", "source"):
        return len(set(values)) > 1
    by_kind: dict[str | None, set[str | None]] = {}
    for line, value in zip(lines, values, strict=True):
        kind = line.get(f"{section}.kind", line.get(f"{section}.source"))
        by_kind.setdefault(kind, set()).add(value)
    return any(len(own) > 1 for own in by_kind.values())
