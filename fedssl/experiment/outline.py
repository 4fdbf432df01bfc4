"""The outline of the experiment file: its sections, kinds and settings, without the code of any method, so without torch.

The outline (`outline.json`) is made from the experiment's own model by `make references`, and a test compares the two. This module
reads it back as classes that stand in for the real ones: they refuse unknown keys, unknown kinds, and values of a wrong type or out
of range, in the words of the same functions. They know nothing else, and they raise `Unsure` where only the real classes can tell.
"""

import functools
import hashlib
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from fedssl.core import known_names
from fedssl.core.findings import Form
from fedssl.core.plugin_modules import split_kind
from fedssl.core.registry import Family, Plugin, RefusingSection, Section, Unimported
from fedssl.experiment.phases import Phases
from fedssl.experiment.preset import PresetName
from fedssl.experiment.settings import view_at

FILE = Path(__file__).with_name("outline.json")

PACKAGE = Path(__file__).parents[1]
"""The folder of fedssl's modules."""

SETTINGS = re.compile(r"^    \w+: .*\n(?:     .*\n|    [\])}].*\n|\n)*", re.MULTILINE)
"""The lines of a class that define a setting."""

BUILTINS = {"bool": bool, "int": int, "float": float, "str": str, "null": NoneType}
"""The types that an outline names; a setting of any other type is not checked."""

BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
"""The bounds of a setting, as pydantic names them."""

KEYWORDS = (*BOUNDS, "default", "description")
"""What an outline says of a setting in the words of pydantic's `Field`."""


class Unsure(Exception):
    """The outline cannot tell whether a setting is right."""


class Unchecked:
    """Annotates a setting whose values only the real class can check: any value passes."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Let pydantic take any value."""
        return core_schema.any_schema()


class OutlinedFamily(Family):
    """A family whose members stand in for the real ones; `Unsure` if the experiment names any other member."""

    def __init__(self, outline: "Outline", section: str, table: Mapping[str, Any]) -> None:
        super().__init__(
            table["noun"],
            table["package"],
            outline.plugin(table["base"]),
            section,
            table["default"],
            table["key"],
        )
        self._outline = outline
        self._kinds: Mapping[str, str] = outline.kinds[self.package]

    def names(self) -> list[str]:
        """Return the kinds that the outline has, sorted."""
        return sorted(self._kinds)

    def settings_of(self, kind: Any) -> dict[str, Any]:
        """Return the settings that a kind has; `Unsure` for a kind of the user's own."""
        if isinstance(kind, str) and "." in split_kind(kind)[0]:
            raise Unsure
        return super().settings_of(kind)

    def _built_in(self, stem: str) -> type[Plugin] | None:
        name = self._kinds.get(stem)
        return None if name is None else self._outline.plugin(name)

    def _load_own(self, stem: str, rest: str) -> tuple[type[Plugin], str]:
        raise Unsure


class UncheckedFamily(OutlinedFamily):
    """A family with a form of its own for a section, which only the real classes can read: nothing is checked."""

    def as_table(self, value: Any) -> Any:
        """Return a section that is a table; `Unsure` for any other."""
        if not isinstance(value, Mapping):
            raise Unsure
        return value

    def build(self, value: Any) -> Plugin:
        """Return a section that holds no settings."""
        return Unimported.of(self, str(self.default), {})


LATER = ConfigDict(defer_build=True)
"""Most stand-ins only say which settings there are; pydantic prepares those that check some when they are first used."""


class PlainSection(Section):
    """The base of a stand-in for a section without a kind."""

    model_config = LATER


class PlainRefusing(RefusingSection):
    """The base of a stand-in for a section that refuses some keys in words of its own."""

    model_config = LATER


class OpenSection(Section):
    """The base of a stand-in for a section that takes other settings, too."""

    model_config = LATER | ConfigDict(extra="allow")


class PlainPlugin(Plugin):
    """The base of a stand-in for a plug-in."""

    model_config = LATER


BASES: dict[str, type[Section]] = {
    "section": PlainSection,
    "refusing section": PlainRefusing,
    "open section": OpenSection,
    "plug-in": PlainPlugin,
}
"""The bases of stand-ins, by what an outline says of a class."""


class Outline:
    """The classes that stand in for those of the experiment file; each is made when it is first needed.

    Args:
        table: The content of `outline.json`.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.kinds: Mapping[str, Mapping[str, str]] = table["kinds"]
        """The name of the class of each kind, by the family's package."""
        self._families: Mapping[str, Mapping[str, Any]] = table["families"]
        self._classes: Mapping[str, Mapping[str, Any]] = table["classes"]
        self._digest: str = table["digest"]
        self._modules: list[str] = table["modules"]
        self._made: dict[str, type[Section]] = {}

    @classmethod
    @functools.cache
    def read(cls) -> "Outline":
        """Return the outline that belongs to fedssl, read once."""
        return cls(json.loads(FILE.read_text(encoding="utf-8")))

    @property
    def is_current(self) -> bool:
        """Whether fedssl's code defines the settings and kinds that the outline has.

        It does not while somebody works on fedssl and has not yet run `make references`.
        """
        return digest_of(self._modules, self.kinds) == self._digest

    @functools.cached_property
    def plan(self) -> type[Section]:
        """The stand-in for the settings of one phase."""
        return self.section("fedssl.experiment.experiment:RunSettings")

    @functools.cached_property
    def experiment(self) -> type[Section]:
        """The stand-in for the whole experiment file."""
        return create_model(
            "Experiment",
            __base__=self.plan,
            __module__=__name__,
            phases=(Phases, ()),
            preset=(PresetName | None, None),
        )

    def family_at(self, section: str) -> Family | None:
        """Return the family of a section by its dotted name; None if the section names no plug-in."""
        if section in self._families:
            return self._family(section)
        if view_at(section):
            return OutlinedFamily(
                self, section, {**self._families["augment.weak"], "default": None}
            )
        return None

    def plugin(self, name: str) -> type[Plugin]:
        """Return the stand-in for a class of plug-ins."""
        found = self.section(name)
        assert issubclass(found, Plugin), name
        return found

    def section(self, name: str) -> type[Section]:
        """Return the stand-in for a class, by the name of its module and its own."""
        if name not in self._made:
            table = self._classes[name]
            module, _, own = name.partition(":")
            fields: dict[str, Any] = {k: self._field(v) for k, v in table["fields"].items()}
            base = BASES[table["is"]]
            self._made[name] = create_model(own, __base__=base, __module__=module, **fields)
            found = self._made[name]
            if issubclass(found, RefusingSection):
                found.refused = table["refused"]
            if issubclass(found, Plugin) and "knows_name" in table:
                found.knows_name = staticmethod(getattr(known_names, table["knows_name"]))
        return self._made[name]

    def _family(self, section: str) -> Family:
        table = self._families[section]
        made = UncheckedFamily if table.get("is_unchecked") else OutlinedFamily
        return made(self, section, table)

    def _field(self, table: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return a setting as pydantic's `create_model` takes it."""
        words: dict[str, Any] = {name: table[name] for name in KEYWORDS if name in table}
        kind, make = self._section_of(table)
        if make is not None:
            if words.get("default") is not None:
                default = words.pop("default")
                words["default_factory"] = lambda: make(default)
            elif "default" in words:
                kind = kind | None
        if "form" in table:
            kind = Annotated[kind, Form(table["form"])]
        return Annotated[kind, Unchecked()] if table.get("is_unchecked") else kind, Field(**words)

    def _section_of(self, table: Mapping[str, Any]) -> tuple[Any, Callable[[Any], Section] | None]:
        """Return the type of a setting; if it is a section, also the function that makes the section of a default."""
        if "family" in table:
            family = self._family(table["family"])
            return Annotated[family.base, family], family.build
        if "section" in table:
            section = self.section(table["section"])
            kind = dict[str, section] if table.get("is_table_of") else section  # type: ignore[valid-type]
            return kind, lambda default: section.model_construct()
        return self._type(table), None

    def _type(self, table: Mapping[str, Any]) -> Any:
        """Return the type of a setting: one of several alternatives, each of them the name of a type or a list of values."""
        if "type" not in table:
            return Any
        kinds = (
            BUILTINS[one] if isinstance(one, str) else Literal[tuple(one)] for one in table["type"]
        )
        return functools.reduce(operator.or_, kinds)


def digest_of(modules: Iterable[str], packages: Iterable[str]) -> str:
    """Return a digest of the lines that define settings, and of the names of the files that may hold a kind.

    Args:
        modules: Names of fedssl's modules.
        packages: Names of fedssl's packages whose modules are kinds.
    """
    files = {_path(module).with_suffix(".py") for module in modules}
    files.update(file for package in packages for file in _path(package).glob("*.py"))
    found = hashlib.sha256()
    for file in sorted(files):
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        found.update(f"{file.relative_to(PACKAGE).as_posix()}\n".encode())
        found.update("".join(SETTINGS.findall(text)).encode())
    return found.hexdigest()


def _path(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:])
