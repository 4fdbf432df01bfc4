"""`fedssl new`: writes an experiment file that runs at once."""

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from fedssl.app.commands.completion import complete_method
from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.core.plugin_modules import find_modules_in
from fedssl.core.processes import quick_imports
from fedssl.core.toml import SUFFIX


@guarded
def new(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]",
            help="Name of the experiment, or path of its file; by default the name of the data, or digits.",
            show_default=False,
        ),
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your images: a folder with a subfolder a class and unlabeled/ for the rest, or an .npz file."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Kind of the method.", autocompletion=complete_method)
    ] = "fixmatch",
    clients: Annotated[
        int | None, typer.Option(min=1, help="Number of clients; by default as fits the data.")
    ] = None,
) -> None:
    """Write a commented experiment file that runs at once; look at your images for it, if you name their folder or file.

    Examples:
      fedssl new

      fedssl new cells --data photos/cells --method flexmatch
    """
    kind = "folder"
    if data is not None:
        kind, data = _split_source(data)
    file = _choose_file(name, data)
    with quick_imports():
        from fedssl.app.new_experiment import text_of_experiment
        from fedssl.data.survey import survey_folder, survey_npz
        from fedssl.experiment.experiment import Experiment

    # A relative path is written as it was given if the file lies in the current folder, where the path leads.
    path = data if data is None or file.parent == Path() else data.absolute()
    survey = survey_npz if kind == "npz" else survey_folder
    found = None if path is None else survey(str(path))
    if found is not None and clients is not None and 0 < len(found.sites) < clients:
        raise InputError(
            "--clients", f"is {clients}, but {path} has {len(found.sites)} sites", "leave it out"
        )
    called = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "experiment"
    text = text_of_experiment(called, method, clients, f"{kind}:{path}", found)
    # Refuse options that make an invalid experiment before anything is written.
    find_modules_in(file.absolute().parent, Path.cwd())
    Experiment.from_dict(tomllib.loads(text))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise _taken(file) from None
    except OSError as error:
        raise InputError(str(file), f"cannot be written: {error.strerror}") from None
    console, quoted = Console(), shlex.quote(os.fspath(file))
    console.tell(f"{file}: written")
    console.tell(f"  next: fedssl validate {quoted}, then fedssl run {quoted}")


def _split_source(data: Path) -> tuple[str, Path]:
    """Return the kind of source of a user's images, ``folder`` or ``npz``, and their path.

    Args:
        data: The path, or the source as an experiment file names it, such as ``npz:PATH``.

    Raises:
        InputError: The source is of another kind.
    """
    kind, colon, path = str(data).partition(":")
    if not colon or data.exists():
        return ("npz" if data.suffix.lower() == ".npz" and not data.is_dir() else "folder"), data
    if kind not in ("folder", "npz") or not path:
        problem = f"{str(data)!r} is neither a folder of images nor an .npz file"
        raise InputError(
            "--data", problem, f'write another source by hand: source = "{data}" under [data]'
        )
    return kind, Path(path)


def _choose_file(name: str, data: Path | None) -> Path:
    """Return the file to write.

    Raises:
        InputError: The file is there already.
    """
    own = "" if data is None else data.resolve().name.removesuffix(".npz")
    chosen = name or ("digits" if data is None else own or "experiment")
    file = Path(chosen if chosen.endswith(SUFFIX) else chosen + SUFFIX)
    if file.exists():
        raise _taken(file)
    return file


def _taken(file: Path) -> InputError:
    return InputError(str(file), "is there already", "name another: fedssl new NAME")
