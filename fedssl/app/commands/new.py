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
            help="Name of the experiment, or path of its file; by default the folder's name, or digits.",
            show_default=False,
        ),
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of your images: a subfolder a class, unlabeled/ for the rest."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Kind of the method.", autocompletion=complete_method)
    ] = "fixmatch",
    clients: Annotated[
        int | None, typer.Option(min=1, help="Number of clients; by default as fits the data.")
    ] = None,
) -> None:
    """Write a commented experiment file that runs at once; look at your images for it, if you name their folder.

    Examples:
      fedssl new

      fedssl new cells --data photos/cells --method flexmatch
    """
    file = _choose_file(name, data)
    with quick_imports():
        from fedssl.app.new_experiment import text_of_experiment
        from fedssl.data.survey import survey_folder
        from fedssl.experiment.experiment import Experiment

    # A relative path is written as it was given if the file lies in the current folder, where the path leads.
    folder = data if data is None or file.parent == Path() else data.absolute()
    found = None if folder is None else survey_folder(str(folder))
    if found is not None and clients is not None and 0 < len(found.sites) < clients:
        raise InputError(
            "--clients", f"is {clients}, but {folder} has {len(found.sites)} sites", "leave it out"
        )
    called = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "experiment"
    text = text_of_experiment(called, method, clients, folder, found)
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


def _choose_file(name: str, data: Path | None) -> Path:
    """Return the file to write.

    Raises:
        InputError: The file is there already.
    """
    chosen = name or ("digits" if data is None else data.resolve().name or "experiment")
    file = Path(chosen if chosen.endswith(SUFFIX) else chosen + SUFFIX)
    if file.exists():
        raise _taken(file)
    return file


def _taken(file: Path) -> InputError:
    return InputError(str(file), "is there already", "name another: fedssl new NAME")
