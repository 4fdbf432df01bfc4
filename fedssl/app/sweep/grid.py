"""The points of a grid: what ``--set`` spans, and a name for each point that a person can read and a folder can have."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fedssl.core.errors import InputError
from fedssl.experiment.experiment import read_value

LONGEST_VALUE, LONGEST_NAME = 40, 200
"""Characters of one value and of all settings of a run, before a hash stands for the rest; folders may have 255."""

NAMED_ELSEWHERE = ("name", "seed")
"""Settings that have a folder of their own in a run's path."""

BRACKETS = {"[": "]", "{": "}"}

Assignment = tuple[tuple[str, str], ...]
"""One value for every key, as ``--set`` has them."""


@dataclass(frozen=True)
class Axis:
    """The values that one setting takes.

    Args:
        key: Its dotted name.
        values: As TOML or a bare word; at least one, and none twice.
    """

    key: str
    values: tuple[str, ...]


def parse_axes(settings: Sequence[str]) -> list[Axis]:
    """Read settings of the form ``a.b=x,y``.

    Raises:
        InputError: One has no such form, an empty value or one twice; or a key is set twice.
    """
    axes = [_parse_axis(setting) for setting in settings]
    for key, group in itertools.groupby(sorted(axis.key for axis in axes)):
        if len(list(group)) > 1:
            raise InputError(
                "--set", f"{key} is set twice", f"--set {key}=x,y takes several values"
            )
    return axes


def _parse_axis(setting: str) -> Axis:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError("--set", f"{setting!r} is not of the form a.b=x,y")
    values = split_values(text)
    if "" in values:
        raise InputError("--set", f"{setting!r} has an empty value", 'an empty text is ""')
    names = [value_name(value) for value in values]
    for name in names:
        if names.count(name) > 1:
            raise InputError("--set", f"{setting!r} has the value {name} twice")
    return Axis(key.strip(), tuple(values))


def split_values(text: str) -> list[str]:
    """Split at commas outside quotes, brackets and braces.

    A quote opens where a value may begin and nowhere else, as in TOML: ``it's`` is a bare word.

    Raises:
        InputError: A quote or a bracket is left open.
    """
    values, begin, at, closers, fresh = [], 0, 0, "", True
    while at < len(text):
        letter = text[at]
        if letter in "\"'" and fresh:
            at = _end_of_quote(text, at)
        elif letter in BRACKETS:
            closers += BRACKETS[letter]
        elif closers.endswith(letter):
            closers = closers[:-1]
        elif letter == "," and not closers:
            values.append(text[begin:at].strip())
            begin = at + 1
        fresh = letter in "[{," or (letter == "=" and closers != "") or (fresh and letter.isspace())
        at += 1
    if closers:
        raise InputError("--set", f"{text!r} lacks a {closers[-1]}")
    return [*values, text[begin:].strip()]


def _end_of_quote(text: str, at: int) -> int:
    """Return where the quote that opens at a place closes; a backslash escapes within double ones."""
    closing = re.compile(r'"(?:[^"\\]|\\.)*"' if text[at] == '"' else r"'[^']*'").match(text, at)
    if closing is None:
        raise InputError("--set", f"{text!r} lacks a closing quote")
    return closing.end() - 1


def spread(axes: Sequence[Axis]) -> list[Assignment]:
    """Return every combination of values, the last axis fastest; of no axes, the one empty combination."""
    keys = [axis.key for axis in axes]
    return [
        tuple(zip(keys, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]


def settings_name(assignment: Assignment) -> str:
    """Return ``a.b=x,c=y``, safe as the name of a folder and the same for any order; empty of no settings.

    Different settings get different names: a value that cannot stand in one as it is, or is long, ends with a hash.
    """
    parts = sorted(
        f"{_safe(key, key)}={value_name(text)}"
        for key, text in assignment
        if key not in NAMED_ELSEWHERE
    )
    name = ",".join(parts)
    return name if len(name) <= LONGEST_NAME else _hashed(name[:LONGEST_NAME], name)


def value_name(text: str) -> str:
    """Return a value as it stands in a name: ``0.90`` and ``0.9`` are the same, ``"0.9"`` is another one."""
    value = read_value(text)
    whole = json.dumps(value, sort_keys=True, default=str)
    shown = "unset" if value is None else value if isinstance(value, str) else whole
    again = read_value(shown)
    return _safe(shown, whole, told=type(again) is type(value) and bool(again == value))


def _safe(shown: str, whole: str, *, told: bool = True) -> str:
    """Return what can stand in a name; `told` is whether what is shown says which value it is."""
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", shown)
    if told and safe == shown and len(safe) <= LONGEST_VALUE:
        return safe
    return _hashed(safe[:LONGEST_VALUE], whole)


def _hashed(shown: str, whole: str) -> str:
    return f"{shown}~{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
