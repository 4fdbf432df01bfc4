"""From a module's name to the one plug-in that it defines; every fault is one message, and little runs before it is found."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

LONGEST_NAME = 200
"""Characters of the longest module name that is looked for."""

LONGEST_REASON = 300
"""Characters of an import error that a message repeats."""

IN_ITS_OWN_MODULE = (
    "put the class into a module of its own, such as mylab/mine.py, and import it from there: "
    "workers import it by that name (docs/extending.md)"
)


class NoPlugin(Exception):
    """A module is not there or holds no plug-in.

    Args:
        problem: What is wrong, as a clause that follows "there is no method 'NAME'".
        remedy: What to do.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


def check_name(kind: str) -> None:
    """Refuse a kind that can be no module of the user's, before anything is looked for.

    Args:
        kind: With or without dots.

    Raises:
        NoPlugin: It is a file, a script, a module of Python's own, or no name.
    """
    parts = kind.split(".")
    if parts[-1] in ("__main__", "__mp_main__"):
        raise NoPlugin("a notebook or a script is no module", IN_ITS_OWN_MODULE)
    if "/" in kind or "\\" in kind or parts[-1] == "py":
        raise NoPlugin("a kind is the name of a module, not of a file", _module_for_file(kind))
    if len(kind) > LONGEST_NAME or not all(part.isidentifier() for part in parts):
        raise NoPlugin("it is not the name of a module")
    if any(part.startswith("__") for part in parts):
        raise NoPlugin("a module of Python's own workings holds no plug-in")
    if len(parts) > 1 and parts[0] in sys.stdlib_module_names:
        raise NoPlugin(f"{parts[0]!r} is a module of Python's own", "name your folder otherwise")


def find_module(module: str) -> ModuleSpec | None:
    """Return where a module is, without importing it or a package above it; None if it is nowhere."""
    found: ModuleSpec | None = None
    path: Iterable[str] | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        if end > 1 and path is None:
            return None
        found = _find_below(".".join(parts[:end]), path)
        if found is None:
            return None
        path = found.submodule_search_locations
    return found


def import_module(module: str) -> ModuleType:
    """Import a module of the user's.

    Raises:
        NoPlugin: Its code raises anything but KeyboardInterrupt, SystemExit included.
    """
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise NoPlugin(f"{module} cannot be imported: {_reason(error)}") from error


def the_plugin(module: ModuleType, name: str, base: type[Any], noun: str) -> type[Any]:
    """Return the one class of a module that is a plug-in of a family.

    Args:
        module: Imported.
        name: Of the module.
        base: Class that the family's members derive from.
        noun: What a member is called in messages.

    Raises:
        NoPlugin: None or several are defined there, or the only one lacks methods.
    """
    below = _classes_below(module, base)
    own = [found for found in below if found.__module__ == name and not _is_base(found)]
    whole = [found for found in own if not inspect.isabstract(found)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        names = " and ".join(sorted(found.__name__ for found in whole))
        problem = f"{name} defines more than one: {names}"
        remedy = (
            f"keep one {noun} in a module, or mark the others as bases: "
            "`is_abstract: ClassVar[bool] = True` in the class, or a name that begins with an underscore"
        )
        raise NoPlugin(problem, remedy)
    if own:
        lacking = ", ".join(sorted(getattr(own[0], "__abstractmethods__", ())))
        raise NoPlugin(f"{own[0].__name__} of {name} lacks {lacking}", "define it in the class")
    elsewhere = [found for found in below if found.__module__ != name and not _is_base(found)]
    if elsewhere:
        first = elsewhere[0]
        raise NoPlugin(
            f"{name} only imports {first.__name__} from {first.__module__}",
            f"write {first.__module__!r}",
        )
    raise NoPlugin(f"{name} defines no {noun}", "docs/extending.md has an example")


def neighbors(module: str) -> list[str]:
    """Return the modules beside one that is not there, by the files of its package; nothing is imported."""
    package, _, _ = module.rpartition(".")
    spec = find_module(package) if package else None
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return [
        f"{package}.{path.stem}"
        for folder in folders
        for path in sorted(Path(folder).glob("*.py"))
        if path.stem != "__init__"
    ]


def looked_in() -> str:
    """Return the folders of the user's own in which modules are looked for, as a clause."""
    folders = [str(folder) for folder in _own_folders()]
    return f"looked in {', '.join(folders)}" if folders else "no folder of yours is looked in"


def lone_file(stem: str) -> Path | None:
    """Return the file beside the experiment that a kind without a dot seems to mean, if there is one."""
    if not stem.isidentifier() or len(stem) > LONGEST_NAME:
        return None
    files = (folder / f"{stem}.py" for folder in _own_folders())
    return next((file for file in files if file.is_file()), None)


def _find_below(module: str, path: Iterable[str] | None) -> ModuleSpec | None:
    if module in sys.modules:
        return getattr(sys.modules[module], "__spec__", None)
    for finder in sys.meta_path:
        spec = finder.find_spec(module, None if path is None else list(path), None)
        if spec is not None:
            return spec
    return None


def _classes_below(module: ModuleType, base: type[Any]) -> list[type[Any]]:
    """Return a module's classes that derive from another, each once."""
    values = getattr(module, "__dict__", {}).values()
    found = [value for value in values if inspect.isclass(value) and issubclass(value, base)]
    return list(dict.fromkeys(found))


def _is_base(found: type[Any]) -> bool:
    return bool(found.__dict__.get("is_abstract", False)) or found.__name__.startswith("_")


def _own_folders() -> list[Path]:
    """Return the folders of the import path that belong to no installation of Python."""
    installed = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})
    folders = [Path(entry or ".").absolute() for entry in sys.path]
    own = [
        folder
        for folder in folders
        if folder.is_dir() and not str(folder).startswith(installed) and folder != _HERE
    ]
    return list(dict.fromkeys(own))


_HERE = Path(__file__).absolute().parents[2]


def _module_for_file(kind: str) -> str:
    """Return the remedy for a kind that is a file's name."""
    path = kind.replace("\\", "/").removesuffix(".py")
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    if len(parts) == 1 and parts[0].isidentifier():
        return (
            f"put the file into a folder, such as mylab/{parts[0]}.py, and write 'mylab.{parts[0]}'"
        )
    if parts and all(part.isidentifier() for part in parts):
        return f"write {'.'.join(parts)!r}"
    return "write the module's name, such as 'mylab.mine'"


def _reason(error: BaseException) -> str:
    said = " ".join(str(error).split())
    kind = type(error).__name__
    text = f"{kind}: {said}" if said else kind
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."
