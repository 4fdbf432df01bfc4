"""Presets: settings of several sections by one name, ``preset = "NAME"``, that were found to go well together.

Each preset is a TOML file of the folder ``presets``. It stands for its settings: a record holds these, and not the name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.toml import read_toml
from fedssl.experiment.settings import FamilyAt, merge

KEY = "preset"
"""The key that names a preset, in a file beside the sections or as ``--set preset=NAME``."""

FOLDER = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(preset_names())]
    """The name of a preset."""


def with_preset(table: Mapping[str, Any], family_at: FamilyAt) -> dict[str, Any]:
    """Return a table of settings in which the settings of the preset that it names lie below its own.

    Args:
        table: Settings, of a file or of a command.
        family_at: The families of the experiment file.

    Raises:
        InputError: There is no such preset.
    """
    own = {key: value for key, value in table.items() if key != KEY}
    name = table.get(KEY)
    if name is None:
        return own
    if name not in (names := preset_names()):
        raise InputError(KEY, f"there is no preset {name!r}", suggest_nearest(str(name), names))
    return merge(read_toml(FOLDER / f"{name}.toml"), own, family_at, said=[])


def merge_with_presets(
    table: Mapping[str, Any],
    over: Mapping[str, Any],
    family_at: FamilyAt,
    said: list[str] | None = None,
) -> dict[str, Any]:
    """Return settings laid over a file's, as `merge` does, where each lie over the preset that they name.

    Settings that name a preset, or unset it, leave out the file's.

    Args:
        table: The settings below.
        over: The settings on top.
        family_at: The families of the experiment file.
        said: List to which sentences are added on a section that gets another kind.

    Raises:
        InputError: There is no such preset.
    """
    if KEY in over:
        table = {key: value for key, value in table.items() if key != KEY}
    return merge(with_preset(table, family_at), with_preset(over, family_at), family_at, said=said)
