"""Turns what pydantic finds in settings into one message."""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fedssl.core.errors import InputError, suggest_nearest

LONGEST_INPUT = 40
"""A message shows a list that was given if its text has at most this many characters."""

MOST_NAMED = 5
"""A message names at most this many further settings that are wrong."""

SHOULD_BE = "Input should be "
"""Beginning of most of pydantic's findings."""

Finding = Mapping[str, Any]
"""One of the errors of a `ValidationError`."""


@dataclass(frozen=True)
class Form:
    """What the pattern of a setting means, as an annotation of the setting: a message says it in place of the pattern.

    Args:
        words: What the setting may hold, such as "letters and digits".
    """

    words: str


def input_error(error: ValidationError, model: type[BaseModel], prefix: str = "") -> InputError:
    """Return pydantic's findings as one message: what is wrong with the first setting, and which others are wrong too.

    Args:
        error: The findings.
        model: The class of the settings.
        prefix: Dotted name of the section that has these settings; empty for a whole experiment.
    """
    found: dict[str, list[Finding]] = {}
    for finding in error.errors():
        field = ".".join(([prefix] if prefix else []) + _setting(finding, model))
        found.setdefault(field or model.__name__, []).append(_with_form(finding, model))
    (field, own), *others = found.items()
    also = _also_wrong([name for name, _ in others])
    first = own[0]
    if first["type"] == "extra_forbidden":
        *path, last = map(str, first["loc"])
        owner = _model_at(model, path)
        known = list(owner.model_fields) if owner else []
        return InputError(field, "unknown key" + also, suggest_nearest(last, known))
    if first["type"] == "missing" and len(own) == 1:
        return InputError(field, "is missing" + also)
    return InputError(field, _problem(own) + also)


def _with_form(finding: Finding, model: type[BaseModel]) -> Finding:
    """Return a finding that says in words what a pattern says, if the setting is annotated with a `Form`."""
    if finding["type"] != "string_pattern_mismatch":
        return finding
    *path, last = _setting(finding, model)
    owner = _model_at(model, path)
    field = None if owner is None else owner.model_fields.get(last)
    forms = [each for each in (field.metadata if field else ()) if isinstance(each, Form)]
    return {**finding, "msg": f"{SHOULD_BE}{forms[0].words}"} if forms else finding


def _also_wrong(others: list[str]) -> str:
    if not others:
        return ""
    more = ", ..." if len(others) > MOST_NAMED else ""
    return f" (also wrong: {', '.join(others[:MOST_NAMED])}{more})"


def _problem(findings: list[Finding]) -> str:
    """Return what is wrong with a setting, and what it should be: any of the types that pydantic tried."""
    first, given = findings[0], findings[0]["input"]
    problem = _in_plain_words(first)
    if len(findings) > 1:
        wanted = dict.fromkeys(map(_wanted, findings))
        problem = SHOULD_BE + " or ".join(wanted)
    is_short = isinstance(given, list) and len(repr(given)) <= LONGEST_INPUT
    is_shown = is_short or isinstance(given, str | int | float | bool | NoneType)
    if problem.startswith("is ") or not is_shown:
        return problem
    return f"is {given!r}: {problem[0].lower()}{problem[1:]}"


def _wanted(finding: Finding) -> str:
    """Return what one of several types would take."""
    said, tried = _in_plain_words(finding), finding["loc"][-1]
    if said.startswith(SHOULD_BE) and isinstance(tried, str):
        return said.removeprefix(SHOULD_BE).partition(",")[0]
    kinds = [part for part in finding["loc"] if isinstance(part, str)]
    return kinds[-1].replace("tuple[", "list[")


def _in_plain_words(finding: Finding) -> str:
    """Return what pydantic says in the words of a TOML file, which has lists and tables."""
    said = str(finding["msg"]).removeprefix("Value error, ").replace("a valid tuple", "a list")
    return re.sub(r"a valid dictionary( or instance of \w+)?", "a table", said)


def _setting(finding: Finding, model: type[BaseModel]) -> list[str]:
    """Return the path of the setting that a finding is about.

    Where a setting may have several types, the location goes on with the type that pydantic tried; the path ends before.
    """
    path = [str(part) for part in finding["loc"]]
    owner: type[BaseModel] | None = model
    for depth, part in enumerate(path, 1):
        field = None if owner is None else owner.model_fields.get(part)
        if field is None:
            break
        if get_origin(field.annotation) in (Union, UnionType):
            types = [one for one in get_args(field.annotation) if one is not NoneType]
            if len(types) > 1:
                return path[:depth]
        owner = section_of(field.annotation)
    return path


def _model_at(model: type[BaseModel], path: Iterable[str]) -> type[BaseModel] | None:
    """Return the class of the section at a path; None if there is no section."""
    owner: type[BaseModel] | None = model
    parts = iter(path)
    for part in parts:
        field = None if owner is None else owner.model_fields.get(part)
        table = None if field is None else _table_of(field.annotation)
        if table is not None and next(parts, None) is not None:  # the name of one of the sections
            owner = table
        else:
            owner = None if field is None else section_of(field.annotation)
    return owner


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section of a table of sections by their names; None if the type is no such table."""
    choices = get_args(annotation) or (annotation,)
    values = [get_args(choice)[1] for choice in choices if get_origin(choice) is dict]
    return section_of(values[0]) if values else None


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a setting's type holds: alone, as one of several alternatives, in a list or in a table.

    None if the type holds no section.
    """
    waiting = [annotation]
    for kind in waiting:  # grows
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            return kind
        waiting += [each for each in get_args(kind) if each is not Ellipsis]
    return None
