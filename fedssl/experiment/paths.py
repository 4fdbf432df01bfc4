"""Relative paths in an experiment: they lie below the current folder, or else below another one, such as that of the file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedssl.core.registry import Section
from fedssl.data.sites import Site
from fedssl.data.sources.base import Source
from fedssl.models.base import MODELS, Model

AnySection = TypeVar("AnySection", bound=Section)

HERE = Path()
"""The current folder. A path that is found below it stays as it is written."""


def find_paths(section: AnySection, folders: Sequence[Path]) -> AnySection:
    """Return a section whose relative paths are found: each below the first of some folders in which something lies there.

    A path that is found below another folder than `HERE` becomes absolute. Every other path stays as it is written. A source
    of data remembers the folders, so that its error can name all paths that were tried.

    Args:
        section: A section, with the sections in it.
        folders: The folders, in the order in which they are searched.
    """
    found = _with_paths(section, lambda path: _find(path, folders))
    for source in _sources(found).values():
        source.__dict__["searched"] = tuple(folder.resolve() for folder in folders)
    return found


def keep_searched(before: Section, after: Section) -> None:
    """Let the sources of data that did not change remember the folders in which their paths were searched.

    Args:
        before: A section whose paths were found.
        after: The same section with some settings changed.
    """
    found = _sources(before)
    for name, source in _sources(after).items():
        if source == found.get(name):
            source.__dict__["searched"] = found[name].searched


def _sources(section: Section) -> dict[str, Source]:
    fields = {name: getattr(section, name) for name in type(section).model_fields}
    return {name: value for name, value in fields.items() if isinstance(value, Source)}


def make_paths_absolute(section: AnySection) -> AnySection:
    """Return a section in which every path that exists is absolute, for processes with another current folder."""
    return _with_paths(section, lambda path: path.absolute() if path.exists() else path)


def resolve_paths(section: AnySection) -> AnySection:
    """Return a section in which every path that exists is the real one, so that all ways to one place are equal."""
    return _with_paths(section, lambda path: path.resolve() if path.exists() else path)


def _find(path: Path, folders: Sequence[Path]) -> Path:
    if path.is_absolute():
        return path
    found = next((folder for folder in folders if (folder / path).exists()), HERE)
    return path if found == HERE else found.resolve() / path


def _with_paths(section: AnySection, change: Callable[[Path], Path]) -> AnySection:
    """Return a section with its given paths changed; a path that starts with ``~`` stays as it is."""
    changed: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        new = value
        if isinstance(value, Section):
            new = _with_paths(value, change)
        elif name == "sites" and value is not None:
            new = {site: _with_paths(each, change) for site, each in value.items()}
        elif name == "phases":
            new = tuple(_with_weights(phase, change) for phase in value)
        elif name in section.model_fields_set and isinstance(value, Path):
            new = Path(_changed(str(value), change))
        elif isinstance(section, Site):
            kind, colon, path = section.source.partition(":")
            new = value if name != "source" else kind + colon + _changed(path, change)
        elif isinstance(section, Source | Model) and name in section.paths and value is not None:
            new = _changed(value, change)
        if new != value:
            changed[name] = new
    return section.model_copy(update=changed) if changed else section


def _with_weights(phase: Section, change: Callable[[Path], Path]) -> Section:
    """Return a phase whose weights are found: its settings are tables, which are resolved with the experiment's own."""
    model = (phase.model_extra or {}).get(MODELS.section)
    if not isinstance(model, Mapping) or not isinstance(model.get("weights"), str):
        return phase
    weights = _changed(model["weights"], change)
    return phase.model_copy(update={MODELS.section: {**model, "weights": weights}})


def _changed(text: str, change: Callable[[Path], Path]) -> str:
    """Return a path as text with a change; a path that the change leaves as it is keeps its very text."""
    path = Path(text)
    new = path if text.startswith("~") else change(path)
    return text if new == path else str(new)
