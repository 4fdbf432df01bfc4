"""Relative paths in an experiment: they lie below the current folder, or else below the folder of the experiment file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fedssl.core.registry import Section
from fedssl.data.sources.base import Source

AnySection = TypeVar("AnySection", bound=Section)


def find_paths(section: AnySection, folder: Path) -> AnySection:
    """Return a section whose relative paths are found: a path that is not below the current folder, but below another.

    Such a path becomes absolute. Every other path stays as it is written. A source of data remembers the folder, so that
    its error can name all paths that were tried.

    Args:
        section: A section, with the sections in it.
        folder: Folder of the experiment file.
    """
    found = _with_paths(section, lambda path: _find(path, folder))
    for source in (getattr(found, name) for name in type(found).model_fields):
        if isinstance(source, Source):
            source.__dict__["beside"] = folder.absolute()
    return found


def make_paths_absolute(section: AnySection) -> AnySection:
    """Return a section in which every path that exists is absolute, for processes with another current folder."""
    return _with_paths(section, lambda path: path.absolute() if path.exists() else path)


def _find(path: Path, folder: Path) -> Path:
    is_elsewhere = not path.is_absolute() and not path.exists() and (folder / path).exists()
    return (folder / path).absolute() if is_elsewhere else path


def _with_paths(section: AnySection, change: Callable[[Path], Path]) -> AnySection:
    """Return a section with its given paths changed; a path that starts with ``~`` stays as it is."""
    changed: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        new = value
        if isinstance(value, Section):
            new = _with_paths(value, change)
        elif name in section.model_fields_set and not str(value).startswith("~"):
            if isinstance(value, Path):
                new = change(value)
            elif isinstance(section, Source) and name in section.paths:
                path = Path(value)
                new = value if (other := change(path)) == path else str(other)
        if new != value:
            changed[name] = new
    return section.model_copy(update=changed) if changed else section
