"""What several commands take: experiment files and settings laid over them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # --help must not wait for torch
    from fedssl.config import Experiment

Files = Annotated[list[Path], typer.Argument(help="Experiment files (TOML).", show_default=False)]
File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, e.g. --set method.threshold=0.9; repeatable."),
]


def load_experiment(file: Path, settings: list[str]) -> "Experiment":
    """Read an experiment file, which may name modules beside it or in the current folder."""
    from fedssl.config import Experiment

    find_modules_in(file.absolute().parent, Path.cwd())
    return Experiment.load(file, settings)


def find_modules_in(*folders: Path) -> None:
    """Let experiments name modules in these folders; a console script looks in none by itself."""
    for folder in map(str, folders):
        if folder not in sys.path:
            sys.path.append(folder)


def load_seeds(file: Path, settings: list[str], seeds: int) -> "list[Experiment]":
    """Read an experiment file with its seed, the next one, and so on."""
    first = load_experiment(file, settings).seed
    return [load_experiment(file, [*settings, f"seed={first + i}"]) for i in range(seeds)]
