"""The settings of a sweep that a point can have: where kinds are swept, a setting is set at the kinds that have it."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedssl.app.sweep.axes import Assignment
from fedssl.core.registry import Family
from fedssl.experiment.preset import KEY, merge_with_presets
from fedssl.experiment.settings import FamilyAt, tables_of


def leave_out_unknown(
    tables: Sequence[Mapping[str, Any]], assignments: Sequence[Assignment], family_at: FamilyAt
) -> tuple[list[Assignment], list[str]]:
    """Return each point's settings without those that its kinds lack, and a sentence on each setting that is left out.

    A setting that no point can have stays: the check of the settings tells what is wrong with it.

    Args:
        tables: The experiment file of each point, as it was read.
        assignments: The settings of each point.
        family_at: The families of the experiment file.
    """
    lacking = [
        _lacking(table, assignment, family_at)
        for table, assignment in zip(tables, assignments, strict=True)
    ]
    mistakes = set.intersection(*map(set, lacking)) if lacking else set()
    kept = [
        tuple((key, text) for key, text in assignment if key in mistakes or key not in own)
        for assignment, own in zip(assignments, lacking, strict=True)
    ]
    said = [
        f"left out: {key} ({kind} has no such setting)"
        for own in lacking
        for key, kind in own.items()
        if key not in mistakes
    ]
    return kept, list(dict.fromkeys(said))


def _lacking(
    table: Mapping[str, Any], assignment: Assignment, family_at: FamilyAt
) -> dict[str, str]:
    """Return the keys of settings that a point's kinds lack, each with the kind of its section."""
    kinds = [
        f"{key}={text}" for key, text in assignment if key == KEY or _names_kind(key, family_at)
    ]
    chosen = merge_with_presets(table, tables_of(kinds, family_at), family_at)
    found = {}
    for key, _ in assignment:
        section, family, name = _section_of(key, family_at)
        if family is None or _names_kind(key, family_at):
            continue
        kind = family.kind_of(family.as_table(_at(chosen, section)))
        if isinstance(kind, str) and name not in family.settings_of(kind):
            found[key] = kind
    return found


def _names_kind(key: str, family_at: FamilyAt) -> bool:
    """Return whether a setting names the kind of a section: ``method.kind=...``, or ``method=...`` for short."""
    section, _, last = key.rpartition(".")
    above = family_at(section)
    return family_at(key) is not None or (above is not None and last == above.key)


def _section_of(key: str, family_at: FamilyAt) -> tuple[str, Family | None, str]:
    """Return the innermost section with a kind that a setting is in, its family, and the name that follows in the key."""
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        section = ".".join(parts[:end])
        if (family := family_at(section)) is not None:
            return section, family, parts[end]
    return "", None, ""


def _at(table: Any, section: str) -> Any:
    """Return what nested tables hold at a dotted name; None if there is nothing."""
    for part in section.split("."):
        table = table.get(part) if isinstance(table, Mapping) else None
    return table
