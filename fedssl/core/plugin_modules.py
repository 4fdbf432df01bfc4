"""Find the one plug-in that a module defines, by the module's name.

Every fault gives one message, and little of the user's code runs before the fault is found.
"""

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
"""Names of modules with more characters than this are refused, and messages cut them off."""

LONGEST_REASON = 300
"""A message repeats at most this many characters of an import error."""

IN_ITS_OWN_MODULE = (
    "put the class into a module of its own, such as mylab/mine.py, and import it from there: "
    "workers import it by that name (docs/extending.md)"
)


class NoPlugin(Exception):
    """A module cannot be found, or it holds no plug-in.

    Args:
        problem: What is wrong, as a clause that follows "there is no method 'NAME'".
        remedy: What to do.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


def check_name(kind: str) -> None:
    """Refuse a kind that cannot be a module of the user's, before any module is searched.

    Args:
        kind: The kind, with or without dots.

    Raises:
        NoPlugin: The kind is a file, a script, a module of Python itself, or not a name.
    """
    parts = kind.split(".")
    if parts[-1] in ("__main__", "__mp_main__"):
        raise NoPlugin("a notebook or a script is not a module", IN_ITS_OWN_MODULE)
    if "/" in kind or "\\" in kind or parts[-1] == "py":
        raise NoPlugin("a kind is the name of a module, not of a file", _suggest_module(kind))
    if len(kind) > LONGEST_NAME or not all(part.isidentifier() for part in parts):
        raise NoPlugin("it is not the name of a module")
    if any(part.startswith("__") for part in parts):
        raise NoPlugin("a name that begins with __ is reserved for Python")
    if len(parts) > 1 and parts[0] in sys.stdlib_module_names:
        raise NoPlugin(
            f"{parts[0]!r} is a module of Python itself", "give your folder another name"
        )


def find_module(module: str) -> ModuleSpec | None:
    """Return where a module is, without importing it or a package above it; None if it cannot be found."""
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
        NoPlugin: The module's code raises anything but KeyboardInterrupt; SystemExit counts, too.
    """
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise NoPlugin(f"{module} cannot be imported: {_describe_error(error)}") from error


def find_plugin(module: ModuleType, name: str, base: type[Any], noun: str) -> type[Any]:
    """Return the one class of a module that is a plug-in of a family.

    Args:
        module: The imported module.
        name: The module's name.
        base: Class that the family's members derive from.
        noun: What messages call a member.

    Raises:
        NoPlugin: The module defines no plug-in or several, or its only plug-in lacks methods.
    """
    # A class counts as the module's own if the module defines it and it is no base of further plug-ins.
    below = _classes_below(module, base)
    own = [found for found in below if found.__module__ == name and not _is_base(found)]
    whole = [found for found in own if not inspect.isabstract(found)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        names = " and ".join(sorted(found.__name__ for found in whole))
        problem = f"{name} defines more than one {noun}: {names}"
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


def modules_beside(module: str) -> list[str]:
    """Return the modules that the package of a missing module does hold, by its files; nothing is imported."""
    package, _, _ = module.rpartition(".")
    spec = find_module(package) if package else None
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return [
        f"{package}.{path.stem}"
        for folder in folders
        for path in sorted(Path(folder).glob("*.py"))
        if path.stem != "__init__"
    ]


def describe_searched_folders() -> str:
    """Return a clause that lists the user's own folders in which modules are searched."""
    folders = [str(folder) for folder in _list_user_folders()]
    return f"searched {', '.join(folders)}" if folders else "no folder of yours is searched"


def find_file_meant(stem: str) -> Path | None:
    """Return the file in the user's folders that a kind without a dot seems to mean; None if no file fits."""
    if not stem.isidentifier() or len(stem) > LONGEST_NAME:
        return None
    files = (folder / f"{stem}.py" for folder in _list_user_folders())
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
    """Return the classes in a module that derive from a base class, each once."""
    values = getattr(module, "__dict__", {}).values()
    found = [value for value in values if inspect.isclass(value) and issubclass(value, base)]
    return list(dict.fromkeys(found))


def _is_base(found: type[Any]) -> bool:
    return bool(found.__dict__.get("is_abstract", False)) or found.__name__.startswith("_")


def _list_user_folders() -> list[Path]:
    """Return the folders of the import path that belong neither to an installation of Python nor to fedssl."""
    installed = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})
    folders = [Path(entry or ".").absolute() for entry in sys.path]
    own = [
        folder
        for folder in folders
        if folder.is_dir() and not str(folder).startswith(installed) and folder != _HERE
    ]
    return list(dict.fromkeys(own))


_HERE = Path(__file__).absolute().parents[2]


def _suggest_module(kind: str) -> str:
    """Return the remedy for a kind that is the name of a file."""
    path = kind.replace("\\", "/").removesuffix(".py")
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    if len(parts) == 1 and parts[0].isidentifier():
        return (
            f"put the file into a folder, such as mylab/{parts[0]}.py, and write 'mylab.{parts[0]}'"
        )
    if parts and all(part.isidentifier() for part in parts):
        return f"write {'.'.join(parts)!r}"
    return "write the module's name, such as 'mylab.mine'"


def _describe_error(error: BaseException) -> str:
    said = " ".join(str(error).split())
    kind = type(error).__name__
    text = f"{kind}: {said}" if said else kind
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."
