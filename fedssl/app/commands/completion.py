"""What a shell completes: settings of the experiment file and their values, kinds, and places to explain."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from fedssl.app.commands.listing import shown_default

if TYPE_CHECKING:  # a shell asks at every TAB
    from pydantic.fields import FieldInfo


def complete_setting(incomplete: str) -> list[str]:
    """Return how a ``--set KEY=VALUE`` may go on: ``method.`` with every setting of any method, ``method.kind=`` with the kinds.

    A section ends with a dot, and a setting with an equals sign. A shell puts a space behind the only way to go on, so a single
    setting is followed by its values, or by its default if values cannot be listed.
    """
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={one}" for one in _values(key) if one.startswith(value)]
    found = [name if name.endswith(".") else f"{name}=" for name in complete_place(incomplete)]
    is_setting = len(found) == 1 and found[0].endswith("=")
    return found + [found[0] + one for one in _values(found[0][:-1])] if is_setting else found


def complete_place(incomplete: str) -> list[str]:
    """Return the settings and sections of the experiment file that begin so.

    A section ends with a dot; if there is only one section, its settings are returned.
    """
    return _complete(incomplete, _settings_in)


def complete_explained(incomplete: str) -> list[str]:
    """Return what `fedssl explain` can explain and begins so: sections, settings, and kinds, which end with a dot, too."""
    return _complete(incomplete, _explained_in)


def complete_method(incomplete: str) -> list[str]:
    """Return the kinds of methods that begin so."""
    return [kind for kind in _values("method.kind") if kind.startswith(incomplete)]


def _complete(incomplete: str, names_in: Callable[[str], Iterable[str]]) -> list[str]:
    section, dot, last = incomplete.rpartition(".")
    names = (name for name in names_in(section) if name.startswith(last))
    found = sorted({f"{section}{dot}{name}" for name in names})
    is_section = len(found) == 1 and found[0].endswith(".")
    return _complete(found[0], names_in) if is_section else found


def _settings_in(section: str) -> Iterator[str]:
    """Yield the names of the settings and sections in a section; those of sections end with a dot."""
    for name, field in _fields(section).items():
        place = f"{section}.{name}" if section else name
        yield f"{name}." if _is_section(place, field) else name


def _explained_in(section: str) -> Iterator[str]:
    """Yield the names of what can be explained in a section, of its kinds too, or in a kind."""
    from fedssl.experiment.families import PLUGIN_SECTIONS

    yield from _settings_in(section)
    if section in PLUGIN_SECTIONS:
        yield from (f"{kind}." for kind in PLUGIN_SECTIONS[section].names())
    above, _, kind = section.rpartition(".")
    family = PLUGIN_SECTIONS.get(above)
    if family is not None and kind in family.names() and section not in PLUGIN_SECTIONS:
        yield from set(family.get(kind).model_fields) - {"name"}


def _is_section(place: str, field: "FieldInfo | None") -> bool:
    from fedssl.core.findings import section_of
    from fedssl.experiment.families import PLUGIN_SECTIONS

    return place in PLUGIN_SECTIONS or (
        field is not None and section_of(field.annotation) is not None
    )


def _fields(section: str) -> "dict[str, FieldInfo | None]":
    """Return the settings of a section, of all its kinds together; empty if there is no such section.

    The setting that names the kind has no field.
    """
    from fedssl.core.findings import section_of
    from fedssl.experiment.experiment import Experiment
    from fedssl.experiment.families import PLUGIN_SECTIONS

    if section in PLUGIN_SECTIONS:
        family = PLUGIN_SECTIONS[section]
        known = [family.get(name).model_fields for name in family.names()]
        settings = {name: field for fields in known for name, field in fields.items()}
        settings.pop("name", None)
        return {family.key: None, **settings}
    if not section:  # phases are a list: their settings begin with a number
        return {name: one for name, one in Experiment.model_fields.items() if name != "phases"}
    above, _, name = section.rpartition(".")
    field = _fields(above).get(name)
    owner = None if field is None else section_of(field.annotation)
    return {} if owner is None else dict(owner.model_fields)


def _values(key: str) -> list[str]:
    """Return the values of a setting, or its default if they cannot be listed; empty if there is none."""
    from fedssl.experiment.families import PLUGIN_SECTIONS

    section, _, name = key.rpartition(".")
    for place in (key, section):
        family = PLUGIN_SECTIONS.get(place)
        if family is not None and (place == key or name == family.key):
            return [
                f"{kind}:" if "name" in family.get(kind).model_fields else kind
                for kind in family.names()
            ]
    field = _fields(section).get(name)
    if field is None:
        return []
    default = field.get_default(call_default_factory=True)
    usual = [] if field.is_required() or default is None else [shown_default(default)]
    return list(_listed(field.annotation)) or usual


def _listed(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("false", "true")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for one in get_args(annotation):
            yield from _listed(one)
