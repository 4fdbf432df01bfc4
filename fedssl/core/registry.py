"""Find plug-ins by name: a plug-in's name is the name of its module, and a new plug-in takes one file.

A `Family` is a package of such modules. ``kind = "fixmatch"`` is the module ``fedssl/methods/fixmatch.py``.
``kind = "torchvision:resnet18"`` is the module ``torchvision`` with its field ``name = "resnet18"``. A kind with a dot is the
user's own: a file (``kind = "sharp.py"``), any importable module (``kind = "mylab.sharp"``), or one class of several
(``kind = "sharp.py:Sharp"``).
"""

import contextlib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    PydanticUserError,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.findings import input_error
from fedssl.core.known_names import knows_no_name
from fedssl.core.plugin_modules import (
    FILE,
    IN_ITS_OWN_MODULE,
    LONGEST_NAME,
    NoPlugin,
    check_file,
    check_name,
    describe_searched_folders,
    find_file_meant,
    find_module,
    find_plugin,
    import_module,
    is_own,
    kind_of_class,
    module_of,
    modules_beside,
    own_classes,
    split_kind,
)
from fedssl.core.trust import Trust, current_trust, trusting


class Section(BaseModel):
    """A frozen section of the experiment file; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __hash__(self) -> int:
        """Hash the settings, also those of a plug-in that are lists or dicts: caches look sections up."""
        values = tuple(vars(self)[name] for name in type(self).model_fields)
        try:
            return hash((type(self), values))
        except TypeError:
            return hash((type(self), _hashable(values)))

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and "5" for a number; pydantic would take them for 1 and 5."""
        field = cls.model_fields.get(info.field_name or "")
        wanted = set(get_args(field.annotation) or (field.annotation,)) if field else set()
        if isinstance(value, bool | str) and wanted and wanted <= {int, float, type(None)}:
            raise ValueError(f"is {value!r}, not a number")
        return value


class RefusingSection(Section):
    """A section that refuses some keys in words of its own, such as a setting that other frameworks have."""

    refused: ClassVar[Mapping[str, str]] = {}
    """What to say of each of these keys."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_keys(cls, value: Any) -> Any:
        for key, words in cls.refused.items():
            if isinstance(value, dict) and key in value:
                raise ValueError(f"{key}: {words}")
        return value


def _hashable(value: Any) -> Any:
    """Return a value that has a hash, the same one for equal settings: lists become tuples, dicts and sets lose their order."""
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return frozenset((key, _hashable(own)) for key, own in value.items())
    return frozenset(value) if isinstance(value, set) else value


def _is_class_variable(kind: Any) -> bool:
    """Return whether an annotation, which may be text, is a ClassVar."""
    return get_origin(kind) is ClassVar or kind is ClassVar or "ClassVar" in str(kind)


class Plugin(Section):
    """A section of the experiment file whose ``kind`` names the module that implements it.

    Annotated names are settings. A `ClassVar` is no setting.

    Example:
        The class stands in this module, so its kind is ``registry``; in ``mylab/dropout.py`` it is ``mylab.dropout``.

        >>> class Dropout(Plugin):
        ...     probability: float = 0.5
        >>> Dropout(probability=0.1).to_dict()
        {'kind': 'registry', 'probability': 0.1}
    """

    is_abstract: ClassVar[bool] = False
    """Whether the class is the base of a family; no experiment can name such a class."""

    knows_name: ClassVar[Callable[[str], bool]] = knows_no_name
    """Returns whether ``KIND:NAME`` exists, without importing a library: a function of `fedssl.core.known_names`. The message about an unknown
    kind asks it."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a setting or a constant with the name of a hook: code that calls the hook would find the value."""
        super().__init_subclass__(**options)
        settings = {
            name
            for name, kind in inspect.get_annotations(cls).items()
            if not _is_class_variable(kind)
        }
        for base in (base for base in cls.__mro__[1:] if issubclass(base, Plugin)):
            for name, hook in vars(base).items():
                is_hook = inspect.isroutine(hook) or isinstance(hook, property)
                if name.startswith("_") or not is_hook:
                    continue
                own = name in vars(cls) and not callable(getattr(cls, name))
                constant = own and inspect.isroutine(hook)
                if name in settings or constant:
                    raise TypeError(
                        f"{name!r} of {cls.__name__} has the name of a hook of {base.__name__}; rename it"
                    )

    @property
    def kind(self) -> str:
        """The name that selects this plug-in in an experiment file."""
        module = type(self).__module__
        stem = kind_of_class(type(self)) if is_own(module) else module.rsplit(".", 1)[-1]
        name = getattr(self, "name", None) if "name" in type(self).model_fields else None
        return stem if name is None else f"{stem}:{name}"

    def to_dict(self, key: str = "kind") -> dict[str, Any]:
        """Return the section as a table of the experiment file; the kind comes first."""
        return {key: self.kind, **self.model_dump(mode="json", exclude={"name"})}


class Unimported(Plugin):
    """A section of a record whose kind names a module that may not be imported.

    It holds the section's settings, and they can be read. Anything that needs the module's code raises `InputError`.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    _kind: str = ""
    _family: "Family"

    @classmethod
    def of(cls, family: "Family", kind: str, fields: Mapping[str, Any]) -> Self:
        """Return a section that stands for a plug-in without its code.

        Args:
            family: The plug-in's family.
            kind: The plug-in's kind, as the record writes it.
            fields: The plug-in's settings.
        """
        section = cls.model_validate(fields)
        section._kind, section._family = kind, family
        return section

    @property
    def kind(self) -> str:
        """The kind, as the record writes it."""
        return self._kind

    def to_dict(self, key: str = "kind") -> dict[str, Any]:
        """Return the section as it was read."""
        return {key: self._kind, **self.model_dump(mode="json")}

    if not TYPE_CHECKING:  # mypy would take any attribute for a setting

        def __getattr__(self, name: str) -> Any:
            """Return a setting, or the family's default for it; refuse an attribute that needs the module's code."""
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("_"):
                    raise
            family = self._family
            if name in family.base.model_fields:
                return family.base.model_fields[name].get_default(call_default_factory=True)
            constant = inspect.getattr_static(family.base, name, None)
            if constant is not None and not callable(constant) and not hasattr(constant, "__get__"):
                return constant
            raise InputError(
                f"{family.section}.{family.key}",
                f"this run's {family.noun} {self._kind} is not built in, and its module was not imported",
                "--plugins imports it (in Python: Run(path, plugins=True)), which runs its code",
            )


class Family:
    """One package of plug-ins of the same sort, and its place in the experiment file.

    Args:
        noun: What messages call a member, e.g. ``"method"``.
        package: Dotted name of the package. Each of its modules holds one plug-in.
        base: Class that every member derives from.
        section: The family's place in the experiment file, e.g. ``"federation.partition"``.
        default: Kind of a section that names no kind; None makes the kind required.
        key: The key of the section that names the kind.
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
        """Return a section as a table; a bare name is short for a table with that kind alone."""
        return {self.key: value} if isinstance(value, str) else value

    def kind_of(self, value: Any, otherwise: Any = None) -> Any:
        """Return the kind that a table names, else the kind that a second table names, else the default."""
        for table in (value, otherwise):
            if isinstance(table, Mapping) and self.key in table:
                kind = table[self.key] or self.default  # `unset` puts the default back
                return ":".join(filter(None, split_kind(kind))) if isinstance(kind, str) else kind
        return self.default

    def names(self) -> list[str]:
        """Return the kinds that the package holds, sorted."""
        path = importlib.import_module(self.package).__path__
        modules = sorted(info.name for info in pkgutil.iter_modules(path))
        return [name for name in modules if self._holds_plugin(name)]

    def _holds_plugin(self, stem: str) -> bool:
        module = f"{self.package}.{stem}"
        try:
            find_plugin(import_module(module), module, self.base, self.noun)
        except NoPlugin:
            return False
        return True

    def settings_of(self, kind: Any) -> dict[str, FieldInfo]:
        """Return the settings that a kind has; of a kind that may not be imported here, those that all members have.

        Args:
            kind: The kind, which need not exist.
        """
        stem = split_kind(kind)[0] if isinstance(kind, str) else ""
        known: type[BaseModel] = self.base
        if stem and (self._is_built_in(stem) or current_trust().allows(module_of(stem))):
            with contextlib.suppress(InputError):  # `build` will tell
                known = self.get(kind)
        return dict(known.model_fields)

    def get(self, kind: str) -> type[Plugin]:
        """Return the class that a kind names.

        Args:
            kind: The kind; a ``:NAME`` that is no class is ignored.

        Raises:
            InputError: The module cannot be found, cannot be imported, or does not define exactly one plug-in. The
                error says which folders were searched.
        """
        return self._find(*split_kind(kind))[0]

    def _find(self, stem: str, rest: str) -> tuple[type[Plugin], str]:
        """Return the class that a kind names, and the ``NAME`` of the kind, which may be empty.

        Args:
            stem, rest: The kind, as `split_kind` gives it. In a kind of the user's own, the rest may begin with a class.
        """
        try:
            check_name(stem)
            if "." not in stem:
                return self._load_built_in(stem), rest
            return self._load_own(stem, rest)
        except NoPlugin as error:
            raise self._error_about(stem, error) from error.__cause__

    def _error_about(self, stem: str, error: NoPlugin) -> InputError:
        shown = repr(stem if len(stem) <= LONGEST_NAME else stem[:LONGEST_NAME] + "...")
        problem, where = f"there is no {self.noun} {shown}", f"{self.section}.{self.key}"
        for kind in self._named_kinds():
            if self.get(kind).knows_name(stem):
                return InputError(where, problem, f"did you mean '{kind}:{stem}'?")
        because = f": {error.problem}" if error.problem else ""
        return InputError(where, problem + because, error.remedy)

    def _load_built_in(self, stem: str) -> type[Plugin]:
        found = self._built_in(stem)
        if found is not None:
            return found
        file = find_file_meant(stem)
        if file is None:
            named = ", ".join(f"{kind}:NAME" for kind in self._named_kinds())
            near = suggest_nearest(stem, self.names())
            known = f"{near}; or {named}" if named else near
            raise NoPlugin("", f"{known}; your own are named 'mine.py' or 'mylab.mine'")
        raise NoPlugin("a kind without a dot is built in", f"write '{stem}{FILE}' to name {file}")

    def _built_in(self, stem: str) -> type[Plugin] | None:
        """Return the plug-in of one of the package's modules; None if there is no such module, or it holds no plug-in."""
        module = f"{self.package}.{stem}"
        if find_module(module) is None:
            return None
        try:
            return find_plugin(import_module(module), module, self.base, self.noun)
        except NoPlugin:
            return None

    def _named_kinds(self) -> list[str]:
        """Return the kinds that are followed by a colon and a name."""
        return [stem for stem in self.names() if "name" in self.get(stem).model_fields]

    def _load_own(self, stem: str, rest: str) -> tuple[type[Plugin], str]:
        module = module_of(stem)
        if stem.endswith(FILE):
            check_file(stem)
        elif find_module(module) is None:
            beside = modules_beside(module)
            near = suggest_nearest(module, beside) if beside else "kinds without a dot are built in"
            raise NoPlugin(f"no module of that name is found ({describe_searched_folders()})", near)
        imported, base = import_module(module), self._member_base()
        first, _, name = rest.partition(":")
        for found in own_classes(imported, module, base):
            if found.__name__ == first:
                return found, name
        return find_plugin(imported, stem, base, self.noun), rest

    def _member_base(self) -> type[Plugin]:
        """Return the class that members derive from; where `base` is `Plugin`, the package's ``base`` module has it."""
        if self.base is not Plugin:
            return self.base
        member: type[Plugin] = getattr(
            importlib.import_module(f"{self.package}.base"), self.noun.capitalize()
        )
        return member

    def _is_built_in(self, stem: str) -> bool:
        """Return whether a kind names a module of the package, which any experiment may name."""
        return "." not in stem or stem.rpartition(".")[0] == self.package

    def build(self, value: Any) -> Plugin:
        """Return the plug-in that a section's table describes.

        Raises:
            InputError: The kind or a key is unknown, or a value is out of range. The error names the dotted field.
        """
        # The value may be a plug-in already, a bare name, or a table.
        if isinstance(value, Plugin):
            self._check_instance(value)
            return value
        value = self.as_table(value)
        if not isinstance(value, dict):
            raise InputError(self.section, f"is {value!r}, not a table")
        fields = dict(value)
        kind = fields.pop(self.key, self.default)
        if kind is None:
            raise InputError(
                f"{self.section}.{self.key}", "is missing", suggest_nearest("", self.names())
            )
        if not isinstance(kind, str):
            raise InputError(f"{self.section}.{self.key}", f"is {kind!r}, not a name")
        stem, rest = split_kind(kind)
        if not self._is_built_in(stem) and not current_trust().allows(module_of(stem)):
            return self._stand_in_for(kind, stem, fields)
        plugin, name = self._find(stem, rest)
        if (name or kind.endswith(":")) and "name" not in plugin.model_fields:
            raise InputError(f"{self.section}.{self.key}", *self._no_name(kind, plugin, name))
        if name:
            fields["name"] = name
        if "name" in plugin.model_fields and not fields.get("name"):
            what = plugin.model_fields["name"].description
            remedy = f"write {stem + ':NAME'!r}" + (f" (NAME: {what})" if what else "")
            raise InputError(f"{self.section}.{self.key}", f"is {kind!r}", remedy)
        try:
            return plugin.model_validate(fields)
        except PydanticUserError as error:  # such as a type that only type checkers see
            said = str(error).partition("\n")[0]
            raise self._error_about(
                stem, NoPlugin(f"its settings cannot be used: {said}")
            ) from error
        except ValidationError as error:
            found = input_error(error, plugin, self.section)
            meant = "" if self.key in value else self._kinds_with(error)
            raise InputError(found.field, found.problem, meant or found.remedy) from None

    def _no_name(self, kind: str, plugin: type[Plugin], name: str) -> tuple[str, str]:
        """Return what is wrong with a kind whose plug-in takes no ``:NAME``, and what to do."""
        stem, _ = split_kind(kind)
        if "." in stem:
            problem = f"is {kind!r}, but {stem} defines no {self.noun} {name!r}"
            return problem, suggest_nearest(name, [plugin.__name__])
        own = ", ".join(plugin.model_fields)
        remedy = f"write a table with its settings: {own}" if own else f"write {stem!r}"
        return f"is {kind!r}, but {stem!r} has no ':NAME'", remedy

    def _kinds_with(self, error: ValidationError) -> str:
        """Return which kinds have the unknown key of a section without a kind, as a remedy; empty if none has it."""
        first = error.errors()[0]
        if first["type"] != "extra_forbidden" or len(first["loc"]) > 1:
            return ""
        kinds = [name for name in self.names() if first["loc"][0] in self.get(name).model_fields]
        if not kinds:
            return ""
        return (
            f"without a {self.key}, it is {self.default!r}; the key belongs to: {', '.join(kinds)}"
        )

    def _stand_in_for(self, kind: str, stem: str, fields: dict[str, Any]) -> Plugin:
        """Return an `Unimported` section for a plug-in that may not be imported.

        If this process has imported the plug-in's module already, return the plug-in itself.

        Raises:
            InputError: The current trust makes a forbidden module an error.
        """
        trust = current_trust()
        if not trust.keeps_tables:
            problem = f"{kind!r} is a module that this client does not allow; it was not imported"
            remedy = f'allow it in the node\'s config: allowed-plugins="{module_of(stem)}"'
            raise InputError(f"{self.section}.{self.key}", problem, remedy)
        if module_of(stem) in sys.modules:
            with trusting(Trust((module_of(stem),))):
                return self.build({self.key: kind, **fields})
        try:
            check_name(stem)
        except NoPlugin as error:
            raise self._error_about(stem, error) from None
        return Unimported.of(self, kind, fields)

    def _check_instance(self, plugin: Plugin) -> None:
        """Refuse an object whose class workers could not find by its kind."""
        if isinstance(plugin, Unimported):
            return
        own = type(plugin)
        where = f"{self.section}.{self.key}"
        stands = getattr(sys.modules.get(own.__module__), own.__qualname__, None) is own
        if not stands or own.__module__ in ("__main__", "__mp_main__"):
            problem = f"{own.__name__} is defined in a notebook, a script or a function"
            raise InputError(where, problem, IN_ITS_OWN_MODULE)
        found = self.get(plugin.kind)
        if found is not own:
            problem = f"workers would find {found.__name__} by this kind in place of {own.__name__}"
            raise InputError(where, problem, IN_ITS_OWN_MODULE)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Let pydantic call `build` for a field that is annotated with this family."""
        return core_schema.no_info_plain_validator_function(
            self.build,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda plugin: plugin.to_dict(self.key)
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the section for editors, with one alternative for each kind, and one for a kind's name alone."""
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
        name_alone = {"type": "string", "description": f"the kind of the {self.noun}"}
        return {"anyOf": [*alternatives, name_alone]}


def family_of(field: FieldInfo) -> Family | None:
    """Return the family with which a setting's type is annotated; None if the setting is no section of a plug-in."""
    annotated = [each for choice in get_args(field.annotation) for each in get_args(choice)]
    return next((each for each in (*field.metadata, *annotated) if isinstance(each, Family)), None)
