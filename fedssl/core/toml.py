"""Reads TOML files, and flattens tables; importing this module does not import torch, so a mistyped path is told at once."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fedssl.core.encodings import decode_text
from fedssl.core.errors import InputError

SUFFIX = ".toml"

LARGEST_FILE = 4 << 20
"""An experiment file has at most this many bytes; a longer file is not an experiment file."""

UNSET = "unset"
"""``--set KEY=unset`` removes a setting with this word. `fedssl list` prints it for a setting without a default."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: The file does not exist, cannot be read, is too large, or is not valid TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise InputError(str(path), "no such file", _suggest_file(path)) from None
    except IsADirectoryError:
        raise InputError(str(path), "is a folder", _suggest_in_folder(path)) from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # such as a path with a NUL
        raise InputError(str(path), f"cannot be read: {error}") from None
    if len(content) > LARGEST_FILE:
        raise InputError(str(path), f"has more than {LARGEST_FILE >> 20} MiB", "check the path")
    text = decode_text(path, content)
    try:
        return tomllib.loads(text)
    except ValueError as error:  # Python itself raises it for a number of too many digits
        raise InputError(str(path), f"is not valid TOML: {error}") from None
    except RecursionError:
        raise InputError(str(path), "is not valid TOML: it is nested too deep") from None


def _suggest_file(path: Path) -> str:
    """Return "did you mean ...?" for the TOML file beside a missing one that has nearly its name; empty if there is none."""
    try:
        stems = sorted(f.stem for f in path.parent.glob(f"*{SUFFIX}") if f.name.isprintable())
    except (OSError, ValueError):
        return ""
    found = get_close_matches(path.stem, stems, n=1)
    return f"did you mean {str(path.with_name(found[0] + SUFFIX))!r}?" if found else ""


def _suggest_in_folder(path: Path) -> str:
    """Return "did you mean ...?" for the only TOML file of a folder, such as that of a run; else what to name."""
    try:
        found = [file for file in path.glob(f"*{SUFFIX}") if file.name.isprintable()]
    except OSError:
        found = []
    return f"did you mean {str(found[0])!r}?" if len(found) == 1 else "name a TOML file"


def split_setting(setting: str) -> tuple[list[str], str]:
    """Return the parts of the key of ``a.b=value``, and the text of the value.

    Raises:
        InputError: The setting has another form.
    """
    key, equals, value = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError("--set", f"{setting!r} is not of the form a.b=value")
    return parts, value.strip()


def settings_as_text(table: Mapping[str, Any]) -> dict[str, str]:
    """Return each setting as JSON text, by its dotted name, so that settings can be compared."""
    return {key: json.dumps(value) for key, value in leaves(table)}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every setting in nested tables."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from leaves(below, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, below in enumerate(value):
            yield from leaves(below, f"{key}.{number}")
    else:
        yield key, value
