"""Short names for runs and for the lines of a comparison: the experiment's name, and the settings that differ."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from fedssl.core.toml import UNSET

Settings = Mapping[str, str]
"""Settings by dotted name, each value as JSON text."""

KINDS = ("kind", "source")
"""Last parts of the settings that name a section's plug-in."""


def label_lines(settings: Sequence[Settings]) -> list[str]:
    """Return a different label for each line: the settings that differ, such as ``alpha 0.2, supervised``.

    Where lines have several names, a label is ``NAME``, or ``NAME (alpha 0.2, supervised)`` if other lines have that name too. A
    setting that only one kind of a section has is not named: the kind is named and implies the setting. A label leaves out
    settings that its line does not have.

    Args:
        settings: The settings of each line, ``name`` included; no two lines have equal settings.
    """
    alike: dict[str, list[Settings]] = {}
    for own in settings:
        alike.setdefault(own["name"], []).append(own)
    keys = {name: differing(lines) for name, lines in alike.items()}
    shorts = short_keys(key for named in keys.values() for key in named)
    labels = _labels(settings, keys, lambda own: in_short(own, shorts))
    if len(set(labels)) < len(labels):  # short names do not tell all lines apart
        labels = _labels(settings, keys, _in_full)
    return labels


def _labels(
    settings: Sequence[Settings],
    keys: Mapping[str, Sequence[str]],
    describe: Callable[[Settings], str],
) -> list[str]:
    """Return a label for each line.

    Args:
        settings: The settings of each line.
        keys: The settings that a label names, by the name of its line.
        describe: Returns the text for these settings.
    """
    named = [
        describe({key: own[key] for key in keys[own["name"]] if key in own}) for own in settings
    ]
    if len(keys) == 1 and all(named):
        return named
    names = [json.loads(own["name"]) for own in settings]
    return [f"{name} ({told})" if told else name for name, told in zip(names, named, strict=True)]


def _in_full(settings: Settings) -> str:
    return ", ".join(f"{key}={text}" for key, text in settings.items())


def in_short(settings: Settings, shorts: Mapping[str, str] | None = None) -> str:
    """Return settings as people say them: ``alpha 0.2, supervised``.

    Args:
        settings: The settings to name.
        shorts: What stands for each setting; None: as short as these settings allow (`short_keys`).
    """
    shorts = short_keys(settings) if shorts is None else shorts
    return ", ".join(f"{shorts[key]} {plain(value)}".strip() for key, value in settings.items())


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return a short name for each setting: the last part of its dotted name, or more parts if another one ends alike.

    The name of a kind is empty, since its value says it all, unless two sections that end alike have kinds: then it is the
    section's name.

    Example:
        >>> short_keys(["federation.partition.alpha", "strategy.alpha", "method.kind"])
        {'federation.partition.alpha': 'partition.alpha', 'strategy.alpha': 'strategy.alpha', 'method.kind': ''}
    """
    parts = {
        key: (key.rpartition(".")[0] if _is_kind(key) else key).split(".")
        for key in dict.fromkeys(keys)
    }
    found = {}
    for key, own in parts.items():
        others = [other for name, other in parts.items() if name != key]
        sizes = range(1, len(own) + 1)
        size = next((s for s in sizes if all(o[-s:] != own[-s:] for o in others)), len(own))
        is_alone = all(other[-1] != own[-1] for other in others)
        found[key] = "" if _is_kind(key) and is_alone else ".".join(own[-size:])
    return found


def _is_kind(key: str) -> bool:
    return "." in key and key.rpartition(".")[2] in KINDS


def plain(text: str) -> str:
    """Return a value as people write it: text without quotes, a whole number without a fraction, everything else as JSON."""
    value = json.loads(text)
    if value is None:
        return UNSET
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else bare(text)


def bare(text: str) -> str:
    """Return a value as ``--set`` takes it: text without quotes, everything else as JSON."""
    value = json.loads(text)
    return value if isinstance(value, str) else text


def factors(lines: Mapping[str, Settings]) -> dict[str, dict[str, str]]:
    """Return the settings that differ among lines, each with its value by line, as JSON text; a line may lack a setting.

    Args:
        lines: The settings of each line by its label.
    """
    return {
        key: {label: own[key] for label, own in lines.items() if key in own}
        for key in differing(list(lines.values()))
        if key != "name"
    }


def differences(lines: Mapping[str, Settings]) -> dict[str, dict[str, list[str]]]:
    """Return the settings that differ among lines; a kind is left out if every line has another one.

    Args:
        lines: The settings of each line by its label.

    Returns:
        For each setting, the labels of the lines by their common value, as ``--set`` takes it; a line that lacks the setting is
        left out. Settings are left out as in `label_lines`.
    """
    found = {}
    for key, by_line in factors(lines).items():
        values: dict[str, list[str]] = {}
        for label, value in by_line.items():
            values.setdefault(bare(value), []).append(label)
        if not (_is_kind(key) and len(values) == len(lines)):
            found[key] = values
    return found


def differing(lines: Sequence[Settings]) -> list[str]:
    """Return the settings that distinguish lines, and that the kind of their section does not imply."""
    every = dict.fromkeys(key for line in lines for key in line)
    return [key for key in every if _differs(key, lines)]


def _differs(key: str, lines: Sequence[Settings]) -> bool:
    """Say whether a setting distinguishes lines that the kind of its section does not distinguish."""
    values = [line.get(key) for line in lines]
    section, _, last = key.rpartition(".")
    if None not in values or last in KINDS:
        return len(set(values)) > 1
    by_kind: dict[str | None, set[str | None]] = {}
    for line, value in zip(lines, values, strict=True):
        kind = line.get(f"{section}.kind", line.get(f"{section}.source"))
        by_kind.setdefault(kind, set()).add(value)
    return any(len(own) > 1 for own in by_kind.values())
