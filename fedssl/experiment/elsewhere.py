"""Tell where a setting belongs whose name is unknown in the section in which it was written."""

import re
from collections.abc import Iterator

from pydantic import BaseModel

from fedssl.core.errors import InputError
from fedssl.core.findings import section_of
from fedssl.core.registry import Family
from fedssl.experiment.families import family_at

USUAL = {"server.kind": "strategy.kind", "federation.kind": "federation.partition.kind"}
"""Where a setting belongs that is written in a section of another name, although several sections have such a setting."""

FIRST = ("method", "train", "federation", "model", "strategy", "data", "server")
"""Of several places of a setting, those in these sections are named first, in this order."""

MOST_PLACES = 2
"""A message names at most this many places of a setting."""


def name_the_place(error: InputError, experiment: type[BaseModel]) -> InputError:
    """Return an error about an unknown key with the places where that key is known; any other error stays as it is.

    Args:
        error: The error.
        experiment: The model of the whole experiment file.
    """
    if not error.problem.startswith("unknown key"):
        return error
    section, _, key = re.sub(r"^phases\[\d+\]\.", "", error.field).rpartition(".")
    known = dict(places_of(key, experiment, ""))
    if known.get(section):
        return InputError(error.field, error.problem, f"only these kinds have it: {known[section]}")
    usual = USUAL.get(f"{section}.{key}")
    nearest_first = sorted(known, key=lambda place: (_root(place) != _root(section), _rank(place)))
    found = [usual] if usual else [f"{place}.{key}".lstrip(".") for place in nearest_first]
    if not found:
        return error
    # A key that is nearly one of the section's own may also be a slip of the pen.
    is_near = error.remedy.startswith("did you mean")
    near = [error.remedy.removeprefix("did you mean ").rstrip("?")] if is_near else []
    remedy = f"did you mean {' or '.join([*near, *found[:MOST_PLACES]])}?"
    return InputError(error.field, error.problem, remedy)


def _rank(place: str) -> int:
    return FIRST.index(_root(place)) if _root(place) in FIRST else len(FIRST)


def _root(place: str) -> str:
    return place.partition(".")[0]


def places_of(key: str, model: type[BaseModel], path: str) -> Iterator[tuple[str, str]]:
    """Yield each section that knows a key, and the kinds that know it if the section names a kind; the outermost first."""
    if key in model.model_fields:
        yield path, ""
    for name, field in model.model_fields.items():
        place = f"{path}.{name}" if path else name
        family = family_at(place)
        if family is not None:
            yield from _in_family(key, family, place)
            continue
        if (section := section_of(field.annotation)) is not None:
            yield from places_of(key, section, place)


def _in_family(key: str, family: Family, place: str) -> Iterator[tuple[str, str]]:
    if key == family.key:
        yield place, ""
        return
    kinds = [name for name in family.names() if key in family.get(name).model_fields]
    if kinds and key != "name":
        yield place, ", ".join(kinds)
