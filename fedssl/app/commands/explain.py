"""`fedssl explain`: what the settings of a section of the experiment file mean."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from rich.table import Table

from fedssl.app.commands.completion import complete_explained
from fedssl.app.commands.listing import shown_default
from fedssl.app.commands.places import Entry, find_place, settings_of_all_kinds
from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.processes import quick_imports

if TYPE_CHECKING:  # --help must not wait for pydantic
    from pydantic.fields import FieldInfo

    from fedssl.core.registry import Family

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@guarded
def explain(
    place: Annotated[
        str,
        typer.Argument(
            metavar="[PLACE]",
            help="A section, a kind or a setting, such as train, method.fixmatch or train.lr; or a name alone, such as lr.",
            show_default=False,
            autocompletion=complete_explained,
        ),
    ] = "",
) -> None:
    """Explain the settings of an experiment file: what each one means, its default and its range.

    Examples:
      fedssl explain

      fedssl explain train

      fedssl explain method.fixmatch

      fedssl explain federation.partition.dirichlet.alpha

      fedssl explain threshold

      fedssl explain method.mylab.sharp
    """
    from pydantic.fields import FieldInfo

    from fedssl.core.registry import Family

    with quick_imports():
        places, found = find_place(place)
    console = Console()
    if places and places != (place.removesuffix("."),):
        console.tell(" and ".join(places), style="bold")
    if isinstance(found, Family):
        section = places[0].removesuffix(f".{found.key}")
        console.print(_kinds(section, found))
        if common := settings_of_all_kinds(found):
            console.print("", f"every {section}.KIND has", _table(common), sep="\n")
    elif isinstance(found, FieldInfo):
        console.print(_table({places[0].rpartition(".")[2]: found}))
    elif isinstance(found, Sequence):
        console.print(_entries(found))
    else:
        console.print(_summary(inspect.getdoc(found) or ""), "", sep="\n")
        console.print(_table(found.model_fields))


def _summary(docstring: str) -> str:
    """Return the first paragraph of a docstring on one line, without marks of code."""
    return docstring.partition("\n\n")[0].replace("\n", " ").replace("``", "")


def _kinds(place: str, family: "Family") -> Table:
    """Return a table of the kinds that a section can name."""
    table = Table(
        show_edge=False, caption=f"fedssl explain {place}.KIND shows the settings of a kind"
    )
    table.caption_justify = "left"
    table.add_column(f"{place}.{family.key}", style="bold", overflow="fold", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name in family.names():
        doc = _summary((family.get(name).__doc__ or "").strip())
        table.add_row(f"{name} (default)" if name == family.default else name, doc)
    return table


def _entries(entries: "Sequence[Entry]") -> Table:
    """Return a table with a row for each meaning that a name has, and the places and kinds where it has this meaning."""
    from pydantic.fields import FieldInfo

    from fedssl.core.registry import Family

    has_kinds = any(entry.kinds for entry in entries)
    table = Table(show_edge=False)
    table.add_column("place", style="bold", overflow="fold")
    if has_kinds:
        table.add_column("kinds", overflow="fold")
    table.add_column("default", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for entry in entries:
        if isinstance(entry.what, FieldInfo):
            default, meaning = _row_of(entry.what)
        elif isinstance(entry.what, Family):
            default, meaning = entry.what.default or "required", ", ".join(entry.what.names())
        else:
            default, meaning = "", _summary((entry.what.__doc__ or "").strip())
        kinds = [", ".join(entry.kinds)] if has_kinds else []
        table.add_row("\n".join(entry.places), *kinds, default, meaning)
    return table


def _table(fields: "dict[str, FieldInfo]") -> Table:
    """Return a table with a row for each setting."""
    table = Table(show_edge=False)
    table.add_column("setting", style="bold", overflow="fold", no_wrap=True)
    table.add_column("default", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for name, field in fields.items():
        table.add_row(name, *_row_of(field))
    return table


def _row_of(field: "FieldInfo") -> tuple[str, str]:
    """Return the default of a setting, and what it means with its range."""
    limits = ", ".join(_limits(field))
    meaning = f"{field.description}; {limits}" if limits else field.description or ""
    return ("required" if field.is_required() else _default_of(field)), meaning


def _default_of(field: "FieldInfo") -> str:
    from pydantic import BaseModel

    from fedssl.core.registry import Plugin

    value = field.get_default(call_default_factory=True)
    is_table = isinstance(value, BaseModel) and not isinstance(value, Plugin)
    return "table" if is_table else shown_default(value)


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
