"""Tell where a setting belongs whose name is unknown in the section in which it was written."""

import re
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedssl.core.errors import InputError
from fedssl.core.findings import section_of
from fedssl.core.registry import Family, family_of

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
    found = [usual] if usual else keys_of(key, experiment, section)
    if not found:
        return error
    # A key that is nearly one of the section's own may also be a slip of the pen.
    is_near = error.remedy.startswith("did you mean")
    near = [error.remedy.removeprefix("did you mean ").rstrip("?")] if is_near else []
    remedy = f"did you mean {' or '.join([*near, *found[:MOST_PLACES]])}?"
    return InputError(error.field, error.problem, remedy)


def keys_of(name: str, experiment: type[BaseModel], section: str = "") -> list[str]:
    """Return the dotted names of the settings that have a name, or else that name as their meaning: ``learning_rate`` is ``lr``.

    Args:
        name: The name of the setting alone.
        experiment: The model of the whole experiment file.
        section: The section whose own settings come first.
    """
    places = [f"{place}.{name}".lstrip(".") for place in dict(places_of(name, experiment, ""))]
    if not places:
        places = list(_places_that_mean(name.replace("_", " "), experiment, ""))
    return sorted(places, key=lambda place: (_root(place) != _root(section), _rank(place)))


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
        family = family_of(field)
        if family is not None:
            yield from _in_family(key, family, place)
            continue
        if (section := section_of(field.annotation)) is not None:
            yield from places_of(key, section, place)


def _places_that_mean(words: str, model: type[BaseModel], path: str) -> Iterator[str]:
    """Yield each setting whose description begins with some words that are a clause of their own."""
    for name, field in model.model_fields.items():
        place = f"{path}.{name}" if path else name
        if _first_clause(field) == words:
            yield place
        family = family_of(field)
        if family is not None:
            fields = {
                k: f for kind in family.names() for k, f in family.get(kind).model_fields.items()
            }
            yield from (f"{place}.{k}" for k, f in fields.items() if _first_clause(f) == words)
        elif (section := section_of(field.annotation)) is not None:
            yield from _places_that_mean(words, section, place)


def _first_clause(field: FieldInfo) -> str:
    return re.split(r"[,;:.(]", field.description or "")[0].strip()


def _in_family(key: str, family: Family, place: str) -> Iterator[tuple[str, str]]:
    if key == family.key:
        yield place, ""
        return
    kinds = [name for name in family.names() if key in family.get(name).model_fields]
    if kinds and key != "name":
        yield place, ", ".join(kinds)
