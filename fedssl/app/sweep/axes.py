"""The points of a sweep: all combinations of the values of ``--set``, and a readable folder name for each point."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fedssl.core.errors import InputError
from fedssl.experiment.settings import read_value

LONGEST_VALUE, LONGEST_NAME = 40, 200
"""Most characters of one value and of all settings in a name; a hash replaces the rest. Folder names may have 255."""

NAMED_ELSEWHERE = ("name", "seed")
"""Settings that are not named with the others, because the path of a run has a part for each of them."""

BRACKETS = {"[": "]", "{": "}"}
"""Opening to closing brackets, inside which commas do not separate values."""

Assignment = tuple[tuple[str, str], ...]
"""Pairs of a key and its one value, as texts of ``--set``."""


@dataclass(frozen=True)
class Axis:
    """A setting of a sweep and all its values.

    Args:
        key: Dotted name of the setting.
        values: At least one value, each as TOML or a bare word; no value occurs twice.
    """

    key: str
    values: tuple[str, ...]


def parse_axes(settings: Sequence[str]) -> list[Axis]:
    """Read settings of the form ``a.b=x,y``.

    Raises:
        InputError: A setting has another form, an empty value or a value twice, or two settings have the same key.
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
    """Split a text at commas outside quotes, brackets and braces.

    As in TOML, a quote opens only where a value may begin: ``it's`` is a bare word.

    Raises:
        InputError: A quote or a bracket is not closed.
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
    """Return the position of the quote that closes the quote at `at`; a backslash escapes within double quotes."""
    closing = re.compile(r'"(?:[^"\\]|\\.)*"' if text[at] == '"' else r"'[^']*'").match(text, at)
    if closing is None:
        raise InputError("--set", f"{text!r} lacks a closing quote")
    return closing.end() - 1


def spread(axes: Sequence[Axis]) -> list[Assignment]:
    """Return every combination of values, the last axis fastest; without axes, one empty combination."""
    keys = [axis.key for axis in axes]
    return [
        tuple(zip(keys, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]


def settings_name(assignment: Assignment) -> str:
    """Return ``a.b=x,c=y`` as a safe folder name that does not depend on the order; empty if there are no settings.

    Different settings get different names: a value that is long, or has characters that are not safe, ends with a hash.
    """
    parts = sorted(
        f"{_make_safe(key, key)}={value_name(text)}"
        for key, text in assignment
        if key not in NAMED_ELSEWHERE
    )
    name = ",".join(parts)
    return name if len(name) <= LONGEST_NAME else _add_hash(name[:LONGEST_NAME], name)


def value_name(text: str) -> str:
    """Return a value as names show it: ``0.90`` and ``0.9`` are the same value, the text ``"0.9"`` is another value."""
    value = read_value(text)
    whole = json.dumps(value, sort_keys=True, default=str)
    shown = "unset" if value is None else value if isinstance(value, str) else whole
    again = read_value(shown)
    return _make_safe(shown, whole, told=type(again) is type(value) and bool(again == value))


def _make_safe(shown: str, whole: str, *, told: bool = True) -> str:
    """Return a text that is safe in a name, with a hash of the whole value unless the text is safe and tells the value.

    Args:
        shown: Readable text of the value.
        whole: Text that identifies the value.
        told: Whether `shown` identifies the value too.
    """
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", shown)
    if told and safe == shown and len(safe) <= LONGEST_VALUE:
        return safe
    return _add_hash(safe[:LONGEST_VALUE], whole)


def _add_hash(shown: str, whole: str) -> str:
    return f"{shown}~{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
