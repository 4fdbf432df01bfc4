"""What stands at a place of the experiment file: a section, a kind or a setting. A name alone is found wherever it is."""

import contextlib
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.plugin_modules import find_modules_in

if TYPE_CHECKING:  # --help must not wait for pydantic
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from fedssl.core.registry import Family

NEAR = "did you mean "
"""Beginning of a remedy that names one thing and not all of them."""


@dataclass(frozen=True)
class Entry:
    """What several places have in common.

    Args:
        places: The places.
        kinds: The kinds that have the setting; empty for a setting of a section without kinds, and for a section or a kind.
        what: The setting, or the section or kind.
    """

    places: tuple[str, ...]
    kinds: tuple[str, ...]
    what: "FieldInfo | type[BaseModel] | Family"


What: TypeAlias = "type[BaseModel] | Family | FieldInfo | Sequence[Entry]"
"""A section, a section that names a kind, one setting, or several places of a name."""


def find_place(place: str) -> tuple[tuple[str, ...], What]:
    """Return what stands at a place, and the whole names of the place.

    Args:
        place: A dotted name, ``train.lr``; or its last part alone, ``lr``. Empty for the whole file.

    Raises:
        InputError: There is no such section, kind or setting.
    """
    from fedssl.experiment.elsewhere import MOST_PLACES, keys_of
    from fedssl.experiment.experiment import Experiment

    parts = place.removesuffix(".").split(".") if place else []
    if not parts or parts[0] in Experiment.model_fields:
        return (".".join(parts),), _find(parts)
    if not parts[0].isidentifier():
        raise _missing(parts[0], Experiment.model_fields)
    found = _merged(_entries_of(parts[0]))
    if not found:
        if meant := keys_of(parts[0], Experiment):
            problem = f"there is no {parts[0]!r}"
            raise InputError("explain", problem, f"{NEAR}{' or '.join(meant[:MOST_PLACES])}?")
        if file := _file_with(parts[0]):
            problem = f"there is no {parts[0]!r} in fedssl, but {file} has that name"
            remedy = f"name its section and the file, such as method.{file}.{parts[0]}"
            raise InputError("explain", problem, remedy)
        raise _missing(parts[0], Experiment.model_fields, set(_names_in(Experiment, "")))
    if len(parts) > 1 and len(found) == 1:
        return find_place(".".join([found[0].places[0], *parts[1:]]))
    if len(parts) > 1:
        places = dict.fromkeys(each for entry in found for each in entry.places)
        raise InputError("explain", f"{parts[0]!r} stands at {' and '.join(places)}", "name one")
    if len(found) > 1 or len(found[0].kinds) > 1:
        return (), found
    # The only place of a setting of one kind has the name of the kind.
    kinds = "".join(f"{kind}." for kind in found[0].kinds)
    split = [each.rpartition(".") for each in found[0].places]
    return tuple(f"{section}{dot}{kinds}{name}" for section, dot, name in split), found[0].what


def settings_of_all_kinds(family: "Family") -> "dict[str, FieldInfo]":
    """Return the settings that every kind of a family has, except the ``NAME`` of ``KIND:NAME``."""
    first, *others = [family.get(kind).model_fields for kind in family.names()]
    return {
        name: field
        for name, field in first.items()
        if name != "name" and all(name in fields for fields in others)
    }


def _find(parts: Sequence[str]) -> What:
    """Return what stands at a place whose first part is a section or setting of the file."""
    from pydantic.fields import FieldInfo

    from fedssl.core.findings import section_of
    from fedssl.core.registry import Family
    from fedssl.experiment.experiment import Experiment
    from fedssl.experiment.families import family_at

    found: type[BaseModel] | Family | FieldInfo = Experiment
    for number, path in enumerate(itertools.accumulate(parts, lambda path, part: f"{path}.{part}")):
        section, _, part = path.rpartition(".")
        family = family_at(path)
        if family is None and isinstance(found, Family):
            if part == found.key:
                continue
            if part in found.names():
                found = found.get(part)
                continue
            entries, own = list(_entries_in(section, found, part)), ".".join(parts[number:])
            if "." in own and not entries:
                return _in_own_kind(path, found, parts[number:])
            field = entries[0].what if entries else None
            below = section_of(field.annotation) if isinstance(field, FieldInfo) else None
            if "." not in own or below is None:
                return _setting_of_kinds(section, found, part)
            found = below
            continue
        fields = found.model_fields if isinstance(found, type) else {}
        if part not in fields and family is None:
            raise _missing(path, fields)
        found = family or section_of(fields[part].annotation) or fields[part]
    return found


def _in_own_kind(place: str, family: "Family", parts: Sequence[str]) -> What:
    """Return a kind of the user's own, ``adapt.py`` or ``mylab.adapt``, or the setting of it that the last part names.

    Args:
        place: The place of the first part.
        family: The family of the kind.
        parts: The parts of the kind's name, and perhaps a setting.

    Raises:
        InputError: There is no such kind, or the kind has no such setting.
    """
    find_modules_in(Path.cwd())
    *others, name = parts
    kind = ".".join(others)
    is_setting = any(part == "py" or part.startswith("py:") for part in others)
    try:
        found = family.get(kind if is_setting else ".".join(parts))
    except InputError as error:
        if is_setting or "." not in kind:
            raise
        try:
            found = family.get(kind)
        except InputError:
            raise error from None
    else:
        if not is_setting:
            return found
    fields = found.model_fields
    if name not in fields:
        section = place.rpartition(".")[0]
        raise _missing(f"{section}.{kind}.{name}", set(fields) - {"name"})
    return fields[name]


def _file_with(name: str) -> str:
    """Return the name of a file in the current folder in which a class has a setting of a name; empty if there is none."""
    assigned = re.compile(rf"^[ \t]+{re.escape(name)}[ \t]*:", re.MULTILINE)
    for file in sorted(Path.cwd().glob("*.py")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if assigned.search(file.read_text(encoding="utf-8")):
                return file.name
    return ""


def _setting_of_kinds(section: str, family: "Family", name: str) -> What:
    """Return a setting that some kinds of a section have: the setting itself if it is the same for all of them.

    Raises:
        InputError: No kind has it.
    """
    entries = list(_entries_in(section, family, name))
    if not entries:
        known = {key for kind in family.names() for key in family.get(kind).model_fields}
        found = _missing(f"{section}.{name}", [*family.names(), *known - {"name"}])
        if not found.remedy.startswith(NEAR):
            family.get(name)  # raises: it says how the user's own kinds are named
        raise found
    is_for_all = len(entries) == 1 and len(entries[0].kinds) == len(family.names())
    return entries[0].what if is_for_all else entries


def _entries_of(name: str) -> Iterator[Entry]:
    """Yield every place at which a kind, a section or a setting has a name."""
    from fedssl.experiment.elsewhere import places_of
    from fedssl.experiment.experiment import Experiment
    from fedssl.experiment.families import PLUGIN_SECTIONS, family_at

    for section, family in PLUGIN_SECTIONS.items():
        if name in family.names():
            yield Entry((f"{section}.{name}",), (), family.get(name))
    for section, _ in places_of(name, Experiment, ""):
        own = family_at(section)
        if own is not None and name != own.key:
            yield from _entries_in(section, own, name)
            continue
        what = _find(f"{section}.{name}".split("."))
        assert not isinstance(what, Sequence)
        yield Entry((f"{section}.{name}",), (), what)


def _entries_in(section: str, family: "Family", name: str) -> Iterator[Entry]:
    """Yield a setting of a section's kinds once for each meaning and default that it has."""
    if name == "name":  # it is written as KIND:NAME
        return
    kinds: dict[tuple[str, str], list[str]] = {}
    fields = {}
    for kind in family.names():
        if (field := family.get(kind).model_fields.get(name)) is not None:
            kinds.setdefault(_key(field), []).append(kind)
            fields[_key(field)] = field
    for key, having in kinds.items():
        yield Entry((f"{section}.{name}",), tuple(having), fields[key])


def _merged(entries: Iterator[Entry]) -> list[Entry]:
    """Return entries in which those of one meaning are one: ``[method]`` and ``[server.method]`` have the same kinds."""
    from pydantic.fields import FieldInfo

    found: dict[tuple[object, ...], Entry] = {}
    for entry in entries:
        what = _key(entry.what) if isinstance(entry.what, FieldInfo) else (entry.what,)
        same = found.get((entry.kinds, *what))
        places = entry.places if same is None else (*same.places, *entry.places)
        found[entry.kinds, *what] = Entry(places, entry.kinds, entry.what)
    return list(found.values())


def _key(field: "FieldInfo") -> tuple[str, str]:
    return str(field.description), repr(field.get_default(call_default_factory=True))


def _names_in(model: "type[BaseModel]", path: str) -> Iterator[str]:
    """Yield the names of all sections, kinds and settings in a section, at any depth."""
    from fedssl.core.findings import section_of
    from fedssl.experiment.families import family_at

    for name, field in model.model_fields.items():
        yield name
        place = f"{path}.{name}" if path else name
        if (family := family_at(place)) is not None:
            yield from family.names()
            for kind in family.names():
                yield from family.get(kind).model_fields
        elif (section := section_of(field.annotation)) is not None:
            yield from _names_in(section, place)


def _missing(place: str, *known: Collection[str]) -> InputError:
    """Return the error that nothing is at a place, with the nearest name: of the first names, or else of the next ones."""
    section, dot, last = place.rpartition(".")
    remedies = [suggest_nearest(last, names) for names in known]
    near = next((remedy for remedy in remedies if remedy.startswith(NEAR)), remedies[0])
    if near.startswith(NEAR):  # the whole name, as `fedssl explain` takes it
        near = near.replace("'", f"'{section}{dot}", 1)
    return InputError("explain", f"there is no {place!r}", near)
