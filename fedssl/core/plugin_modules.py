"""Find the one plug-in that a module defines, by the module's name.

Every fault gives one message, and little of the user's code runs before the fault is found.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from fedssl.core.errors import suggest_nearest
from fedssl.core.user_code import place_in_user_code

LONGEST_NAME = 200
"""Names of modules with more characters than this are refused, and messages cut them off."""

LONGEST_REASON = 300
"""A message repeats at most this many characters of an import error."""

FOLDERS_SHOWN = 4
"""A message names at most this many of the folders that were searched."""

FILE = ".py"
"""A kind that ends so is a file of the user's. Without this ending, a kind without a dot is built in."""

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


def split_kind(kind: str) -> tuple[str, str]:
    """Return a kind's stem and what follows its first colon, which may be empty.

    The path of a file below a folder becomes the name of its module, and other files lose a leading ``./``.

    Example:
        >>> split_kind("./sharp.py:Sharp"), split_kind("mylab/sharp.py"), split_kind("folder:photos")
        (('sharp.py', 'Sharp'), ('mylab.sharp', ''), ('folder', 'photos'))
    """
    stem, _, rest = kind.partition(":")
    path = stem.replace("\\", "/")
    parts = [part for part in path.removesuffix(FILE).split("/") if part != "."]
    if path.endswith(FILE) and all(part.isidentifier() for part in parts):
        stem = ".".join(parts) if len(parts) > 1 else parts[0] + FILE
    return stem, rest


def module_of(stem: str) -> str:
    """Return the name of the module of a stem, which `split_kind` gives."""
    return stem.removesuffix(FILE)


def kind_of_class(found: type[Any]) -> str:
    """Return the kind of a user's class: its module, or its file if the file is in no folder, and its name where needed.

    The name is needed if the module has another class of the same family.
    """
    module = found.__module__
    stem = module if "." in module else module + FILE
    family = [base for base in found.__mro__ if hasattr(base, "is_abstract")]
    # The last base is `Plugin` itself, and the one before it is the family's, if the class has one.
    if len(family) < 3 or module not in sys.modules:
        return stem
    alike = own_classes(sys.modules[module], module, family[-2])
    return stem if len(alike) < 2 else f"{stem}:{found.__name__}"


def is_own(module: str) -> bool:
    """Return whether a module is none of fedssl's."""
    return not module.startswith("fedssl.")


def check_name(stem: str) -> None:
    """Refuse a stem that cannot be a module of the user's, before any module is searched.

    Args:
        stem: The stem of a kind, with or without dots; see `split_kind`.

    Raises:
        NoPlugin: The stem is a file that cannot be named so, a script, a module of Python itself, or not a name.
    """
    is_file = stem.endswith(FILE)
    parts = module_of(stem).split(".")
    if parts[-1] in ("__main__", "__mp_main__"):
        raise NoPlugin("a notebook or a script is not a module", IN_ITS_OWN_MODULE)
    if "/" in stem or "\\" in stem or (is_file and len(parts) > 1):
        raise NoPlugin(
            "a file of yours is named by its path from the folder of the experiment file or the current folder, "
            "such as 'mine.py' or 'mylab/mine.py'",
            _suggest_module(stem),
        )
    if len(stem) > LONGEST_NAME or not all(part.isidentifier() for part in parts):
        raise NoPlugin("it is not the name of a module")
    if any(part.startswith("__") for part in parts):
        raise NoPlugin("a name that begins with __ is reserved for Python")
    if (is_file or len(parts) > 1) and parts[0] in sys.stdlib_module_names:
        what = "file" if is_file else "folder"
        raise NoPlugin(
            f"{parts[0]!r} is a module of Python itself", f"give your {what} another name"
        )


def check_file(stem: str) -> None:
    """Refuse a file of the user's that no other process would surely find.

    Args:
        stem: The file's name, such as ``sharp.py``.

    Raises:
        NoPlugin: No such file is in the user's folders or installed, two folders hold different ones, or Python finds
            another module by its name.
    """
    files = _list_files(stem)
    spec = find_module(module_of(stem))
    found = Path(spec.origin) if spec is not None and spec.origin else None
    if not files:
        if found is not None and found.name == stem:
            return  # it is installed, as on a deployed client's host
        near = [file.name for folder in _list_user_folders() for file in folder.glob(f"*{FILE}")]
        remedy = suggest_nearest(stem, near) if near else "put it beside the experiment file"
        raise NoPlugin(f"there is no such file ({describe_searched_folders()})", remedy)
    if len({hashlib.sha256(file.read_bytes()).digest() for file in files}) > 1:
        raise NoPlugin(
            f"{files[0]} and {files[1]} have that name and are not the same", "rename one of them"
        )
    if found is None or all(found.resolve() != file.resolve() for file in files):
        other = found or f"the module {module_of(stem)!r}"
        raise NoPlugin(
            f"Python finds {other} in place of {files[0]}", "give your file another name"
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


def find_plugin(module: ModuleType, stem: str, base: type[Any], noun: str) -> type[Any]:
    """Return the one class of a module that is a plug-in of a family.

    Args:
        module: The imported module.
        stem: The stem of the kind that names the module.
        base: Class that the family's members derive from.
        noun: What messages call a member.

    Raises:
        NoPlugin: The module defines no plug-in or several, or its only plug-in lacks methods.
    """
    # A class counts as the module's own if the module defines it and it is no base of further plug-ins.
    name = module_of(stem)
    below = _classes_below(module, base)
    own = [found for found in below if found.__module__ == name and not _is_base(found)]
    whole = own_classes(module, name, base)
    if len(whole) == 1:
        return whole[0]
    if whole:
        names = sorted(found.__name__ for found in whole)
        problem = f"{stem} defines more than one {noun}: {' and '.join(names)}"
        remedy = (
            f"write '{stem}:{names[0]}' to name one, or mark the others as bases: "
            "`is_abstract: ClassVar[bool] = True` in the class, or a name that begins with an underscore"
        )
        raise NoPlugin(problem, remedy)
    if own:
        lacking = ", ".join(sorted(getattr(own[0], "__abstractmethods__", ())))
        raise NoPlugin(f"{own[0].__name__} of {stem} lacks {lacking}", "define it in the class")
    elsewhere = [found for found in below if found.__module__ != name and not _is_base(found)]
    if elsewhere:
        first = elsewhere[0]
        raise NoPlugin(
            f"{stem} only imports {first.__name__} from {first.__module__}",
            f"write {first.__module__!r}",
        )
    raise NoPlugin(f"{stem} defines no {noun}", "docs/extending.md has an example")


def own_classes(module: ModuleType, name: str, base: type[Any]) -> list[type[Any]]:
    """Return the classes that a module defines and that an experiment may name, each once.

    Args:
        module: The imported module.
        name: The module's name.
        base: Class from which they derive.
    """
    return [
        found
        for found in _classes_below(module, base)
        if found.__module__ == name and not _is_base(found) and not inspect.isabstract(found)
    ]


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
    if not folders:
        return "no folder of yours is searched"
    # The last are those of the experiment files that were read.
    shown, more = folders[-FOLDERS_SHOWN:], len(folders) - FOLDERS_SHOWN
    return f"searched {', '.join(shown)}" + (f" and {more} more" if more > 0 else "")


def find_file_meant(stem: str) -> Path | None:
    """Return the file in the user's folders that a kind without a dot seems to mean; None if no file fits."""
    if not stem.isidentifier() or len(stem) > LONGEST_NAME:
        return None
    return next(iter(_list_files(stem + FILE)), None)


def find_modules_in(*folders: Path) -> None:
    """Let experiments name modules in these folders, which are searched after all other folders."""
    for folder in (str(folder.absolute()) for folder in folders):
        if folder not in sys.path:
            sys.path.append(folder)


def _list_files(name: str) -> list[Path]:
    """Return the files of a name in the user's folders."""
    files = (folder / name for folder in _list_user_folders())
    return [file for file in files if file.is_file()]


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


def _suggest_module(stem: str) -> str:
    """Return the remedy for a stem that is the name of a file, but no name that can be used."""
    path = stem.replace("\\", "/")
    parts = [part for part in module_of(path).split("/") if part not in ("", ".", "..")]
    is_below = not path.startswith(("/", ".."))
    if is_below and len(parts) == 1 and all(part.isidentifier() for part in parts[0].split(".")):
        return f"write '{parts[0].replace('.', '/')}{FILE}'"
    if is_below and parts and all(part.isidentifier() for part in parts):
        return f"write {'.'.join(parts)!r}"
    name = parts[-1] if parts and parts[-1].isidentifier() else "mine"
    return f"put the file there, and write '{name}{FILE}'"


def _describe_error(error: BaseException) -> str:
    said = " ".join(str(error).split())
    kind = type(error).__name__
    text = f"{kind}: {said}" if said else kind
    text = text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."
    place = place_in_user_code(error)
    return f"{text} ({place})" if place else text
