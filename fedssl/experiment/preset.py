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
else:  # the folder is listed on import, because a model's types are made on import; so a new preset is one new file
    PresetName = Literal[tuple(preset_names())]
    """The name of a preset."""


def with_preset(
    table: Mapping[str, Any], family_at: FamilyAt, said: list[str] | None = None
) -> dict[str, Any]:
    """Return a table of settings laid over the preset that it names.

    Args:
        table: Settings, with or without the name of a preset.
        family_at: The families of the experiment file.
        said: List to which sentences are added on a section that gets another kind than the preset's; see `merge`.

    Raises:
        InputError: There is no such preset.
    """
    preset, own = _settings_of(table.get(KEY)), _without_name(table)
    return merge(preset, own, family_at, said=[] if said is None else said) if preset else own


def merge_with_presets(
    table: Mapping[str, Any],
    over: Mapping[str, Any],
    family_at: FamilyAt,
    said: list[str] | None = None,
) -> dict[str, Any]:
    """Return settings laid over a file's as `merge` does it, where each may name a preset.

    From below: the file's preset, the file's own settings, the preset on top, the other settings on top. Settings that name a preset, or
    unset it, leave out the file's preset. What the preset on top sets for a kind that has no such setting is left out.

    Args:
        table: The settings below.
        over: The settings on top.
        family_at: The families of the experiment file.
        said: List to which sentences are added on a section that gets another kind, and on what is left out; see `merge`.

    Raises:
        InputError: There is no such preset.
    """
    said = [] if said is None else said
    merged = with_preset(_without_name(table) if KEY in over else table, family_at, said)
    own = _without_name(over)
    preset = _fitting(_settings_of(over.get(KEY)), merged, own, family_at, said)
    return merge(merge(merged, preset, family_at, said=said), own, family_at, said=said)


def _without_name(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != KEY}


def _settings_of(name: Any) -> dict[str, Any]:
    """Return the settings of a preset; none if there is no name.

    Raises:
        InputError: There is no such preset.
    """
    if name is None:
        return {}
    if name not in (names := preset_names()):
        raise InputError(KEY, f"there is no preset {name!r}", suggest_nearest(str(name), names))
    return read_toml(FOLDER / f"{name}.toml")


def _fitting(
    preset: Mapping[str, Any],
    below: Mapping[str, Any],
    above: Mapping[str, Any],
    family_at: FamilyAt,
    said: list[str],
) -> dict[str, Any]:
    """Return a preset without the settings that the kinds of other settings lack."""
    fitting = dict(preset)
    for section, settings in preset.items():
        family = family_at(section)
        if family is None or family.key in settings:
            continue
        kind = family.kind_of(
            family.as_table(above.get(section)), family.as_table(below.get(section))
        )
        known = family.settings_of(kind)
        fitting[section] = {key: value for key, value in settings.items() if key in known}
        said += [
            f"left out: {section}.{key} = {value} ({kind} has no such setting)"
            for key, value in settings.items()
            if key not in known
        ]
    return fitting
