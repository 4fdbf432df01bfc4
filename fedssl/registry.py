"""Plugins found by name: a plugin's name is its module's name, and one file is all it takes.

A `Family` is a package of such modules. ``kind = "fixmatch"`` is the module ``fedssl/methods/fixmatch.py``;
``kind = "torchvision:resnet18"`` is the module ``torchvision`` with its field ``name = "resnet18"``; a kind with
a dot, ``kind = "mylab.mymethod"``, is any importable module of the user's own.
"""

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from fedssl.errors import InputError, nearest


class Section(BaseModel):
    """A frozen section of the experiment file; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and "5" where a number is wanted; pydantic would take them for 1 and 5."""
        field = cls.model_fields.get(info.field_name or "")
        wanted = set(get_args(field.annotation) or (field.annotation,)) if field else set()
        if isinstance(value, bool | str) and wanted and wanted <= {int, float, type(None)}:
            raise ValueError(f"is {value!r}, not a number")
        return value


class Plugin(Section):
    """A section whose ``kind`` names the module that implements it."""

    is_abstract: ClassVar[bool] = False
    """True for a family's base class, which no experiment can name."""

    @property
    def kind(self) -> str:
        """Name that selects this plugin in an experiment file."""
        module = type(self).__module__
        short = module.rsplit(".", 1)[-1]
        stem = short if module.startswith("fedssl.") else module
        name = getattr(self, "name", None) if "name" in type(self).model_fields else None
        return stem if name is None else f"{stem}:{name}"

    def to_dict(self, key: str = "kind") -> dict[str, Any]:
        """Return the section as it would be written, the discriminator first."""
        return {key: self.kind, **self.model_dump(mode="json", exclude={"name"})}


class Family:
    """One package of plugins.

    Args:
        noun: What a member is called in messages, e.g. ``"method"``.
        package: Dotted name of the package that holds one plugin a module.
        base: Class that every member derives from.
        section: Where the family stands in the experiment file, e.g. ``"federation.partition"``.
        default: Kind that stands in when the section names none; None makes it required.
        key: Name of the discriminating key.
    """

    def __init__(
        self,
        noun: str,
        package: str,
        base: type[Plugin],
        section: str,
        default: str | None,
        key: str = "kind",
    ) -> None:
        self.noun = noun
        self.package = package
        self.base = base
        self.section = section
        self.default = default
        self.key = key

    def at(self, section: str, default: str | None) -> Self:
        """Return the same family for another place in the experiment file."""
        return type(self)(self.noun, self.package, self.base, section, default, self.key)

    def as_table(self, value: Any) -> Any:
        """Return a section as a table: a bare name is short for a table that names it."""
        return {self.key: value} if isinstance(value, str) else value

    def kind_of(self, value: Any, otherwise: Any = None) -> Any:
        """Return the kind that a table names, or else another table's, or else the default."""
        for table in (value, otherwise):
            if isinstance(table, Mapping) and self.key in table:
                return table[self.key]
        return self.default

    def names(self) -> list[str]:
        """Return the kinds that the package holds, sorted."""
        path = importlib.import_module(self.package).__path__
        modules = sorted(info.name for info in pkgutil.iter_modules(path))
        return [name for name in modules if self._find(f"{self.package}.{name}") is not None]

    def get(self, stem: str) -> type[Plugin]:
        """Return the class behind a kind (without its ``:name`` part).

        Raises:
            InputError: No such module, or a module without a plugin; names the nearest match.
        """
        module = stem if "." in stem else f"{self.package}.{stem}"
        plugin = self._find(module)
        if plugin is None:
            raise InputError(
                f"{self.section}.{self.key}",
                f"there is no {self.noun} {stem!r}",
                nearest(stem, self.names()),
            )
        return plugin

    def _find(self, module: str) -> type[Plugin] | None:
        where = f"{self.section}.{self.key}"
        try:
            if importlib.util.find_spec(module) is None:
                return None
            loaded = importlib.import_module(module)
        except Exception as error:
            # The module or a package above it is not there, or its name is none; anything else is the user's to see.
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if module.startswith(missing or "\0") or not module.replace(".", "").isidentifier():
                return None
            raise InputError(where, f"{module} cannot be imported: {error}") from error
        for value in vars(loaded).values():
            if (
                inspect.isclass(value)
                and issubclass(value, self.base)
                and value.__module__ == module
                and not value.__dict__.get("is_abstract", False)
                and not value.__name__.startswith("_")
            ):
                return value
        return None

    def build(self, value: Any) -> Plugin:
        """Turn a section's table into the plugin it describes.

        Raises:
            InputError: Unknown kind, unknown key or a value out of range, with the dotted field.
        """
        if isinstance(value, Plugin):
            return value
        value = self.as_table(value)
        if not isinstance(value, dict):
            raise InputError(self.section, f"is {value!r}, not a table")
        fields = dict(value)
        kind = fields.pop(self.key, self.default)
        if kind is None:
            raise InputError(f"{self.section}.{self.key}", "is missing", nearest("", self.names()))
        if not isinstance(kind, str):
            raise InputError(f"{self.section}.{self.key}", f"is {kind!r}, not a name")
        stem, colon, name = kind.partition(":")
        plugin = self.get(stem)
        if colon:
            fields["name"] = name
        if "name" in plugin.model_fields and not fields.get("name"):
            what = plugin.model_fields["name"].description
            remedy = f"write {stem + ':NAME'!r}" + (f" (NAME: {what})" if what else "")
            raise InputError(f"{self.section}.{self.key}", f"is {kind!r}", remedy)
        try:
            return plugin.model_validate(fields)
        except ValidationError as error:
            raise input_error(error, plugin, self.section) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Let pydantic build a field annotated with this family through `build`."""
        return core_schema.no_info_plain_validator_function(
            self.build,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda plugin: plugin.to_dict(self.key)
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the section for editors: one alternative a kind."""
        alternatives = []
        for name in self.names():
            plugin = self.get(name)
            table = handler.resolve_ref_schema(handler(plugin.__pydantic_core_schema__))
            named = "name" in plugin.model_fields
            fields = {k: v for k, v in table.get("properties", {}).items() if k != "name"}
            discriminator = {"pattern": f"^{name}:.+"} if named else {"const": name}
            required = [self.key] if name != self.default else []
            required += [field for field in table.get("required", ()) if field in fields]
            alternatives.append(
                {
                    "title": name,
                    "description": inspect.getdoc(plugin) or "",
                    "type": "object",
                    "properties": {self.key: {"type": "string", **discriminator}, **fields},
                    "additionalProperties": False,
                }
                | ({"required": required} if required else {})
            )
        return {"anyOf": alternatives}


def input_error(error: ValidationError, model: type[BaseModel], prefix: str = "") -> InputError:
    """Say what pydantic found wrong in one message, with the dotted field and the nearest key."""
    first, *rest = error.errors()
    location = [str(part) for part in first["loc"]]
    field = ".".join(([prefix] if prefix else []) + location) or model.__name__
    more = f" (and {len(rest)} more)" if rest else ""
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        known = list(owner.model_fields) if owner else []
        return InputError(field, "unknown key" + more, nearest(location[-1], known))
    if first["type"] == "missing":
        return InputError(field, "is missing" + more)
    problem = first["msg"].removeprefix("Value error, ")
    if not problem.startswith("is ") and isinstance(
        first["input"], (str, int, float, bool, type(None))
    ):
        problem = f"is {first['input']!r}: {problem[0].lower()}{problem[1:]}"
    return InputError(field, problem + more)


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    for part in path:
        field = model.model_fields.get(part)
        choices = () if field is None else get_args(field.annotation) or (field.annotation,)
        sections = [c for c in choices if inspect.isclass(c) and issubclass(c, BaseModel)]
        if not sections:
            return None
        model = sections[0]
    return model
