"""The reference of the experiment file, made from the file's schema: every section, kind and setting."""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fedssl.core.registry import Family
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.families import PLUGIN_SECTIONS

HEAD = "| setting | type | default | range | what it is |\n|---|---|---|---|---|"
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
ALONE = {"number": "a number", "string": "the name of a kind"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Schema = Mapping[str, Any]


def reference() -> str:
    """Return the reference as Markdown, with a heading for each section and below it one for each of its kinds.

    Headings differ from each other without their punctuation, which code hosts and MkDocs leave out of the names of anchors.
    """
    schema = Experiment.model_json_schema()
    return "\n\n".join(_section("", schema, schema["$defs"]))


def _section(path: str, schema: Schema, defs: Schema) -> Iterator[str]:
    """Yield a section's heading and table, then those of the sections and kinds below it."""
    heading = f"`[{path}]`" if path else "The file"
    yield f"## {heading}"
    yield _text(schema)
    yield _table(path, schema)
    for name, field in schema["properties"].items():
        place = f"{path}.{name}" if path else name
        if place in PLUGIN_SECTIONS:
            yield from _kinds(place, field)
        elif (below := _named(field)) and _home(below) == place:
            yield from _section(place, defs[below], defs)


def _kinds(place: str, field: Schema) -> Iterator[str]:
    """Yield the kinds of a family, unless an earlier section lists them already."""
    family = PLUGIN_SECTIONS[place]
    if _first(family) != place:
        return
    yield f"## `[{place}]`"
    alternatives = _alternatives(field)
    short = [one["type"] for one in alternatives if "properties" not in one]
    instead = "".join(f", or the section is just {ALONE[one]}" for one in short)
    what = field["description"]
    yield f"{what[0].upper()}{what[1:]}. `{family.key}` is one of these{instead}:"
    for kind in (one for one in alternatives if "properties" in one):
        shown = kind["title"]
        named = "pattern" in kind["properties"][family.key]
        yield f"### `{place}.{shown}{':NAME' if named else ''}`"
        yield _text(kind)
        own = {k: v for k, v in kind["properties"].items() if k != family.key}
        yield _table(place, {**kind, "properties": own}) if own else "No settings."


def _table(path: str, schema: Schema) -> str:
    rows = (
        _row(f"{path}.{name}" if path else name, name, field, name in schema.get("required", ()))
        for name, field in schema["properties"].items()
    )
    return "\n".join([HEAD, *rows])


def _row(place: str, name: str, field: Schema, is_required: bool) -> str:
    default = "required" if is_required else _default(place, field)
    cells = (f"`{name}`", _type(place, field), default, _range(field), field["description"])
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _type(place: str, field: Schema) -> str:
    """Return the type of a setting, or a link to the type's place on the page."""
    if place in PLUGIN_SECTIONS:
        return f"[kinds](#{_anchor(_first(PLUGIN_SECTIONS[place]))})"
    if below := _named(field):
        return f"[table](#{_anchor(_home(below))})" if _home(below) else "table"
    return " or ".join(dict.fromkeys(_plain(one) for one in _alternatives(field)))


def _plain(field: Schema) -> str:
    if "const" in field or "enum" in field:
        return " or ".join(f"`{json.dumps(v)}`" for v in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        items = field.get("items") or {"anyOf": field.get("prefixItems", [])}
        return "list of " + " or ".join(_plain(one) for one in _alternatives(items))
    return TYPES.get(field["type"], "table")


def _default(place: str, field: Schema) -> str:
    """Return a setting's default; a section has none of its own, because each of its settings has a default."""
    if "default" in field and field["default"] is None:
        return "unset"
    if place in PLUGIN_SECTIONS:
        return f"`{PLUGIN_SECTIONS[place].default}`"
    value = field.get("default", {})  # a default that a function makes counts as an empty table
    return "" if isinstance(value, Mapping) else f"`{json.dumps(value)}`"


def _range(field: Schema) -> str:
    found = (
        f"{sign} {one[name]:g}"
        for one in _alternatives(field)
        for name, sign in BOUNDS.items()
        if name in one
    )
    return ", ".join(found)


def _alternatives(field: Schema) -> list[Schema]:
    """Return the schemas that a setting can have, without the one for an unset value."""
    if "anyOf" in field:
        return [one for below in field["anyOf"] for one in _alternatives(below)]
    return [] if field.get("type") == "null" else [field]


def _named(field: Schema) -> str | None:
    """Return the schema's name of the section that a setting holds, alone or in a list; None for plain settings."""
    for one in _alternatives(field):
        reference = one.get("$ref") or one.get("items", {}).get("$ref")
        if reference:
            return str(reference).rpartition("/")[2]
    return None


@functools.cache
def _homes() -> dict[str, str]:
    """Return the first place of each section, by the section's name in the schema."""
    schema = Experiment.model_json_schema()
    found: dict[str, str] = {}
    waiting = [("", schema)]
    while waiting:
        path, node = waiting.pop(0)
        for name, field in node["properties"].items():
            below = _named(field)
            if below and below not in found:
                found[below] = f"{path}.{name}" if path else name
                waiting.append((found[below], schema["$defs"][below]))
    return found


def _home(name: str) -> str:
    return _homes().get(name, "")


def _first(family: Family) -> str:
    """Return the place at which the reference lists the kinds of a family."""
    return next(
        place for place, other in PLUGIN_SECTIONS.items() if other.package == family.package
    )


def _anchor(place: str) -> str:
    """Return the name that code hosts and MkDocs give the heading of a section."""
    return place.replace(".", "") or "the-file"


def _text(schema: Schema) -> str:
    return str(schema.get("description", "")).replace("``", "`")
