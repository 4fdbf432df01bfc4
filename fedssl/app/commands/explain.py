"""`fedssl explain`: what the settings of a section of the experiment file mean."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from rich.cells import cell_len
from rich.padding import Padding
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

AROUND = 3
"""Columns of a table take this many places beside their texts."""

LEAST = 24
"""A table leaves at least this many places to its last column."""

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
            console.print("", f"every {section}.KIND has", sep="\n")
            _print_settings(console, common)
    elif isinstance(found, FieldInfo):
        _print_settings(console, {places[0].rpartition(".")[2]: found})
    elif isinstance(found, Sequence):
        _print_entries(console, found)
    else:
        console.tell(_summary(inspect.getdoc(found) or ""))
        console.print()
        _print_settings(console, found.model_fields)


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


def _print_entries(console: Console, entries: "Sequence[Entry]") -> None:
    """Print a row for each meaning that a name has, with the places and kinds where it has this meaning."""
    from pydantic.fields import FieldInfo

    from fedssl.core.registry import Family

    rows = []
    for entry in entries:
        if isinstance(entry.what, FieldInfo):
            default, meaning = _row_of(entry.what)
        elif isinstance(entry.what, Family):
            default, meaning = entry.what.default or "required", ", ".join(entry.what.names())
        else:
            default, meaning = "", _summary((entry.what.__doc__ or "").strip())
        rows.append(("\n".join(entry.places), ", ".join(entry.kinds), default, meaning))
    _print_rows(console, ("place", "kinds", "default", "what it is"), rows)


def _print_settings(console: Console, fields: "dict[str, FieldInfo]") -> None:
    """Print a row for each setting."""
    rows = [(name, *_row_of(field)) for name, field in fields.items()]
    _print_rows(console, ("setting", "default", "what it is"), rows)


def _print_rows(console: Console, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows as a table, or one below the other where a table would have to break words; empty columns are left out.

    Args:
        console: The terminal.
        heads: Names of the columns.
        rows: The cells of each row; the first names it, and the last is a sentence.
    """
    columns = [head for place, head in enumerate(heads) if any(row[place] for row in rows)]
    cells = [[row[heads.index(head)] for head in columns] for row in rows]
    words = [
        max((cell_len(word) for row in cells for word in row[place].split()), default=0)
        for place in range(len(columns) - 1)
    ]
    widths = [max(word, len(head)) for word, head in zip(words, columns, strict=False)]
    if sum(widths) + AROUND * len(widths) + LEAST <= console.width:
        table = Table(show_edge=False)
        for head in columns:
            table.add_column(head, style="bold" if head == columns[0] else "", overflow="fold")
        for row in cells:
            table.add_row(*row)
        console.print(table)
        return
    for first, *others, last in cells:
        console.print(first, style="bold")
        named = [f"{head}: {text}" for head, text in zip(columns[1:], others, strict=False) if text]
        for text in (*named, last):
            console.print(Padding(text, (0, 0, 0, 2), expand=False))


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
