"""What a shell completes: settings of the experiment file and their values."""

from collections.abc import Iterator
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
    section, dot, last = incomplete.rpartition(".")
    found = sorted(
        f"{section}{dot}{name}{'.' if _is_section(f'{section}{dot}{name}', field) else ''}"
        for name, field in _fields(section).items()
        if name.startswith(last)
    )
    return complete_place(found[0]) if len(found) == 1 and found[0].endswith(".") else found


def _is_section(place: str, field: "FieldInfo | None") -> bool:
    from fedssl.app.commands.explain import section_of
    from fedssl.experiment.families import PLUGIN_SECTIONS

    return place in PLUGIN_SECTIONS or (field is not None and section_of(field) is not None)


def _fields(section: str) -> "dict[str, FieldInfo | None]":
    """Return the settings of a section, of all its kinds together; empty if there is no such section.

    The setting that names the kind has no field.
    """
    from fedssl.app.commands.explain import section_of
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
    owner = None if field is None else section_of(field)
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
