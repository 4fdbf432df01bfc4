"""The outline of the experiment file, made from the experiment's model; `fedssl.experiment.outline` reads it without torch."""

import json
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedssl.core.findings import Form, section_of
from fedssl.core.known_names import knows_no_name
from fedssl.core.registry import Family, Plugin, RefusingSection, Section, family_of
from fedssl.experiment.experiment import RunSettings
from fedssl.experiment.families import PLUGIN_SECTIONS
from fedssl.experiment.outline import BOUNDS, BUILTINS, digest_of

BEFORE = ("before", "plain", "wrap")
"""The modes of validators that see a value before its type is checked, and may take values of other types."""


def outline() -> str:
    """Return the outline as JSON, with a line for each setting."""
    classes: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    waiting: list[type[BaseModel]] = [RunSettings]
    for family in PLUGIN_SECTIONS.values():
        members = {name: family.get(name) for name in family.names()}
        kinds[family.package] = {name: _name(one) for name, one in members.items()}
        waiting += [family.base, *members.values()]
    seen: list[type[BaseModel]] = []
    for found in waiting:  # grows
        if found not in seen:
            seen.append(found)
            classes[_name(found)] = _class(found)
            waiting += filter(None, (section_of(f.annotation) for f in found.model_fields.values()))
    families = {section: _family(family) for section, family in PLUGIN_SECTIONS.items()}
    modules = {one.__module__ for found in seen for one in found.__mro__}
    own = sorted(module for module in modules if module.startswith("fedssl."))
    head = {"digest": digest_of(own, kinds), "modules": own, "kinds": kinds, "families": families}
    text = json.dumps({**head, "classes": classes}, indent=1, sort_keys=False)
    # A setting stands on one line, so that a difference shows which setting it is.
    for table in classes.values():
        for field in table["fields"].values():
            text = text.replace(_indented(field), json.dumps(field))
    return text + "\n"


def _indented(field: dict[str, Any]) -> str:
    return json.dumps(field, indent=1).replace("\n", "\n" + " " * 4)


def _name(found: type[BaseModel]) -> str:
    return f"{found.__module__}:{found.__name__}"


def _class(found: type[BaseModel]) -> dict[str, Any]:
    fields = {name: _field(field) for name, field in found.model_fields.items()}
    for validator in found.__pydantic_decorators__.field_validators.values():
        if (
            validator.info.mode in BEFORE
            and validator.func.__qualname__.partition(".")[0] != Section.__name__
        ):
            for name in validator.info.fields:
                fields[name].update(is_unchecked=True)
    refused = {"refused": found.refused} if issubclass(found, RefusingSection) else {}
    knows = found.knows_name if issubclass(found, Plugin) else knows_no_name
    names = {} if knows is knows_no_name else {"knows_name": knows.__name__}
    return {"is": _base(found), **refused, **names, "fields": fields}


def _base(found: type[BaseModel]) -> str:
    """Return what the outline says of a class; its base differs for each word."""
    if issubclass(found, RefusingSection):
        return "refusing section"
    takes_any = found.model_config.get("extra") == "allow"
    if not issubclass(found, Plugin):
        return "open section" if takes_any else "section"
    assert not takes_any, found
    return "plug-in"


def _field(field: FieldInfo) -> dict[str, Any]:
    """Return what the outline says of a setting."""
    table: dict[str, Any] = {}
    family, section = family_of(field), section_of(field.annotation)
    if family is not None:
        assert type(PLUGIN_SECTIONS[family.section]) is type(family)
        table["family"] = family.section
    elif section is not None:
        table["section"] = _name(section)
        types = [
            one for one in get_args(field.annotation) or (field.annotation,) if one is not NoneType
        ]
        if types != [section]:
            assert [get_origin(one) for one in types] == [dict], field
            table.update(is_table_of=True, is_unchecked=True)
    else:
        table.update(_type(field))
    if not field.is_required():
        table["default"] = _default(field.get_default(call_default_factory=True))
    return {**table, "description": field.description}


def _family(family: Family) -> dict[str, Any]:
    names = ("noun", "package", "default", "key")
    table = {name: getattr(family, name) for name in names}
    own = {} if type(family) is Family else {"is_unchecked": True}
    return {**table, "base": _name(family.base), **own}


def _type(field: FieldInfo) -> dict[str, Any]:
    """Return the type of a plain setting with its bounds; nothing if the outline has no words for them."""
    kinds = _alternatives(field.annotation)
    bounds: dict[str, Any] = {}
    for limit in field.metadata:
        known = {k: getattr(limit, k) for k in BOUNDS if getattr(limit, k, None) is not None}
        known |= {"form": limit.words} if isinstance(limit, Form) else {}
        if not known:
            return {}
        bounds |= known
    return {} if None in kinds else {"type": kinds, **bounds}


def _alternatives(annotation: Any) -> list[Any]:
    """Return each alternative of a type as the outline writes it; None in place of one that it cannot write."""
    if get_origin(annotation) in (Union, UnionType):
        return [found for one in get_args(annotation) for found in _alternatives(one)]
    if get_origin(annotation) is Literal:
        return [list(get_args(annotation))]
    return [next((name for name, kind in BUILTINS.items() if kind is annotation), None)]


def _default(value: Any) -> Any:
    """Return a default as JSON; a section has the defaults of its class."""
    if isinstance(value, Plugin):
        return value.to_dict()
    return {} if isinstance(value, BaseModel) else json.loads(json.dumps(value, default=str))
