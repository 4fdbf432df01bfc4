"""Presets: settings of several sections by one name, ``preset = "NAME"``, that were found to go well together.

Each preset is a TOML file of the folder ``presets``. It stands for its settings: a record holds these, and not the name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.toml import read_toml
from fedssl.experiment.settings import merge

KEY = "preset"
"""The key that names a preset, in a file beside the sections or as ``--set preset=NAME``."""

FOLDER = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def with_preset(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of settings in which the settings of the preset that it names lie below its own.

    Raises:
        InputError: There is no such preset.
    """
    own = {key: value for key, value in table.items() if key != KEY}
    name = table.get(KEY)
    if name is None:
        return own
    if name not in (names := preset_names()):
        raise InputError(KEY, f"there is no preset {name!r}", suggest_nearest(str(name), names))
    return merge(read_toml(FOLDER / f"{name}.toml"), own)


def add_to_schema(schema: dict[str, Any]) -> None:
    """Add the key to the JSON Schema of experiment files."""
    description = "settings of several sections by one name; the file's own settings lie over them"
    schema["properties"][KEY] = {"enum": preset_names(), "description": description}
