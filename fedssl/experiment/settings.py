"""Tables of settings: read them from TOML, merge them, and change them by ``--set KEY=VALUE``.

Importing this module does not import torch: `fedssl.experiment.form` merges settings before torch is there.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedssl.core.errors import InputError
from fedssl.core.registry import Family
from fedssl.core.toml import UNSET, split_setting

FamilyAt = Callable[[str], Family | None]
"""Returns the family of plug-ins of a section by the section's dotted name; None if the section names no plug-in."""


def view_at(section: str) -> str:
    """Return the name of the view that a section defines, by the section's dotted name; empty if it defines none.

    Any experiment may define views of its own beside those that every experiment has: ``augment.NAME``.
    """
    table, _, name = section.partition(".")
    return name if table == "augment" and "." not in name else ""


def merge(
    base: Mapping[str, Any],
    over: Mapping[str, Any],
    family_at: FamilyAt,
    path: str = "",
    said: list[str] | None = None,
) -> dict[str, Any]:
    """Return one table of settings laid over another.

    Tables merge key by key. If the table on top names another plug-in for a section (``method.kind``), the section keeps the
    settings that the new plug-in has too, so that a comparison of two plug-ins changes nothing else. A value of None removes a
    setting. Numbered keys (``phases.0.rounds``) reach into lists.

    Args:
        base: The table below.
        over: The table on top.
        family_at: The families of the experiment file.
        path: Dotted name of the section that both tables are; empty for a whole experiment.
        said: List to which sentences are added on a section that gets another kind: which settings it keeps that are not at the
            new kind's default, and which are left out. None: a section with another plug-in keeps only the settings that all
            members of the family have, such as the number of labels. A phase begins a section anew in this way, since the table
            below has all defaults written out.
    """
    merged = dict(base)
    for key, value in over.items():
        where = f"{path}.{key}" if path else key
        below = merged.get(key)
        family = family_at(where)
        if family is not None:
            value, below = family.as_table(value), family.as_table(below)
            if family.kind_of(value, below) != family.kind_of(below):
                below = _for_other_kind(below or {}, family, value, where, said)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(below, list):
            merged[key] = _merge_list(below, value, family_at, where, said)
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(below, value, family_at, where, said)
        else:
            merged[key] = value
    return merged


def _for_other_kind(
    below: Mapping[str, Any], family: Family, value: Any, where: str, said: list[str] | None
) -> dict[str, Any]:
    """Return the settings of a section that stay if the section gets another kind; see `merge`."""
    if said is None:
        return {k: v for k, v in below.items() if k in family.base.model_fields}
    kind, old_kind = family.kind_of(value, below), family.kind_of(below)
    known, before = family.settings_of(kind), family.settings_of(old_kind)
    # The same kind with another name, such as another folder, has the same settings with the same meanings.
    is_same = str(kind).partition(":")[0] == str(old_kind).partition(":")[0] and known == before
    given = value if isinstance(value, Mapping) else {}
    kept = {}
    for key, old in below.items():
        if key in (family.key, "name"):
            continue
        if key not in before:  # a mistake, which the check of the settings tells
            kept[key] = old
        elif key in known and known[key].annotation == before[key].annotation:
            kept[key] = old
            default = known[key].get_default(call_default_factory=True)
            if not is_same and key not in {*given, *family.base.model_fields} and old != default:
                said.append(f"kept: {where}.{key} = {old} (the default of {kind} is {default})")
        elif key not in given and old != before[key].get_default(call_default_factory=True):
            said.append(f"left out: {where}.{key} = {old} ({kind} has no such setting)")
    return kept


def _merge_list(
    below: list[Any],
    over: Mapping[str, Any],
    family_at: FamilyAt,
    where: str,
    said: list[str] | None,
) -> list[Any]:
    merged = list(below)
    for key, value in over.items():
        if not (key.isascii() and key.isdecimal() and int(key) < len(merged)):
            raise InputError(f"{where}.{key}", f"there are {len(merged)}, counted from 0")
        item = merged[int(key)]
        if isinstance(item, Mapping) and isinstance(value, Mapping):
            # A phase holds sections of the experiment, so their dotted names begin anew.
            path = "" if where == "phases" else f"{where}.{key}"
            own = None if said is None else list[str]()
            merged[int(key)] = merge(item, value, family_at, path, own)
            if said is not None:
                said += [f"phase {key}: {line}" for line in own or ()]
        else:
            merged[int(key)] = value
    return merged


def tables_of(settings: Iterable[str], family_at: FamilyAt) -> dict[str, Any]:
    """Return ``a.b=value`` settings as nested tables.

    Args:
        settings: The settings.
        family_at: The families of the experiment file.

    Raises:
        InputError: A setting is not a text of this form, or reaches into a value that is not a table.
    """
    table: dict[str, Any] = {}
    for setting in settings:
        if not isinstance(setting, str):  # type checkers know, a notebook does not
            raise InputError("settings", f"{setting!r} is no text", 'write "train.lr=0.1"')
        _put(table, setting, family_at)
    return table


def _put(table: dict[str, Any], setting: str, family_at: FamilyAt) -> None:
    """Write ``a.b=value`` into nested tables."""
    parts, value = split_setting(setting)
    for depth, part in enumerate(parts[:-1], 1):
        family = family_at(".".join(parts[:depth]))
        if family is not None and part in table:
            table[part] = family.as_table(table[part])
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError("--set", f"{setting!r} reaches into a value that is not a table")
    table[parts[-1]] = read_value(value)


def read_value(text: str) -> Any:
    """Return the value of a setting, read as TOML; a bare word is a string, except ``unset``, which is None.

    Raises:
        InputError: The text is not one valid value.
    """
    if text == UNSET:
        return None
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise InputError("--set", f"{text[:40]!r}... is not a value: {error}") from None
    if len(found) > 1:
        raise InputError(
            "--set", f"{text[:40]!r} is more than one value", "give each its own --set"
        )
    return found["value"]


def without_none(value: Any) -> Any:
    """Return tables and lists without entries that are None, at any depth."""
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [without_none(v) for v in value]
    return value
