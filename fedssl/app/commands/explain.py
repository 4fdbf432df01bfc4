"""`fedssl explain`: what the settings of a section of the experiment file mean."""

import inspect
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args, get_origin

import typer
from rich.table import Table

from fedssl.app.commands.completion import complete_place
from fedssl.app.commands.listing import shown_default
from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.plugin_modules import find_modules_in
from fedssl.core.processes import quick_imports

if TYPE_CHECKING:  # --help must not wait for pydantic
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from fedssl.core.registry import Family

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

Place: TypeAlias = "type[BaseModel] | Family | FieldInfo"
"""What stands at a place of the experiment file: a section, a section that names a kind, or one setting."""


@guarded
def explain(
    place: Annotated[
        str,
        typer.Argument(
            metavar="[PLACE]",
            help="A section, a kind of a section, or a setting, such as train, method.fixmatch or train.lr.",
            show_default=False,
            autocompletion=complete_place,
        ),
    ] = "",
) -> None:
    """Explain the settings of an experiment file: what each one means, its default and its range.

    Examples:
      fedssl explain

      fedssl explain train

      fedssl explain method.fixmatch

      fedssl explain federation.partition.dirichlet.alpha

      fedssl explain method.mylab.sharp
    """
    from pydantic.fields import FieldInfo

    from fedssl.core.registry import Family

    with quick_imports():
        found = _find(place)
    console = Console()
    if isinstance(found, Family):
        console.print(_kinds(place.removesuffix(f".{found.key}"), found))
    elif isinstance(found, FieldInfo):
        console.print(_table({place.rpartition(".")[2]: found}))
    else:
        text = inspect.getdoc(found) or ""
        console.print(_summary(text), "", sep="\n")
        console.print(_table(found.model_fields))


def _find(place: str) -> Place:
    """Return what stands at a place.

    Raises:
        InputError: There is no such section, kind or setting.
    """
    from fedssl.core.registry import Family
    from fedssl.experiment.experiment import Experiment
    from fedssl.experiment.families import family_at

    parts = place.split(".") if place else []
    found: Place = Experiment
    for number, path in enumerate(itertools.accumulate(parts, lambda path, part: f"{path}.{part}")):
        part, family = path.rpartition(".")[2], family_at(path)
        if family is None and isinstance(found, Family):
            if part == found.key:
                continue
            own = ".".join(parts[number:])
            if "." in own and part not in found.names():
                find_modules_in(Path.cwd())
                return found.get(own)
            found = found.get(part)
            continue
        fields = found.model_fields if isinstance(found, type) else {}
        if part not in fields and family is None:
            raise InputError("explain", f"there is no {path!r}", suggest_nearest(part, fields))
        found = family or section_of(fields[part]) or fields[part]
    return found


def _summary(docstring: str) -> str:
    """Return the first paragraph of a docstring on one line, without marks of code."""
    return docstring.partition("\n\n")[0].replace("\n", " ").replace("``", "")


def section_of(field: "FieldInfo") -> "type[BaseModel] | None":
    """Return the section that a field holds, alone or in a list; None if it holds a value."""
    from pydantic import BaseModel

    waiting: list[Any] = [field.annotation]
    while waiting:
        kind = waiting.pop()
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            return kind
        waiting += [each for each in get_args(kind) if each is not Ellipsis]
    return None


def _kinds(place: str, family: "Family") -> Table:
    """Return a table of the kinds that a section can name."""
    table = Table(
        show_edge=False, caption=f"fedssl explain {place}.KIND shows the settings of a kind"
    )
    table.caption_justify = "left"
    table.add_column(f"{place}.{family.key}", style="bold")
    table.add_column("what it is")
    for name in family.names():
        doc = _summary((family.get(name).__doc__ or "").strip())
        table.add_row(f"{name} (default)" if name == family.default else name, doc)
    return table


def _table(fields: "dict[str, FieldInfo]") -> Table:
    """Return a table with a row for each setting."""
    table = Table(show_edge=False)
    table.add_column("setting", style="bold")
    table.add_column("default")
    table.add_column("what it is")
    for name, field in fields.items():
        limits = ", ".join(_limits(field))
        meaning = f"{field.description}; {limits}" if limits else field.description or ""
        default = "required" if field.is_required() else _default_of(field)
        table.add_row(name, default, meaning)
    return table


def _default_of(field: "FieldInfo") -> str:
    from pydantic import BaseModel

    value = field.get_default(call_default_factory=True)
    is_section = isinstance(value, BaseModel) and not hasattr(value, "kind")
    return "table" if is_section else shown_default(value)


def _limits(field: "FieldInfo") -> list[str]:
    """Return the range of a setting, or the values that it can have."""
    found = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]
    return found + [
        f"one of: {', '.join(map(str, values))}" for values in _choices(field.annotation)
    ]


def _choices(annotation: Any) -> list[tuple[Any, ...]]:
    """Return the values of each Literal in an annotation."""
    if get_origin(annotation) is Literal:
        return [get_args(annotation)]
    return [found for each in get_args(annotation) for found in _choices(each)]
