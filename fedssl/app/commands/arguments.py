"""What several commands take: experiment files and settings laid over them."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # --help must not wait for torch
    from fedssl.experiment.experiment import Experiment
    from fedssl.views.run import Run

Files = Annotated[list[Path], typer.Argument(help="Experiment files (TOML).", show_default=False)]
File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, e.g. --set method.threshold=0.9; repeatable."),
]
RunFolder = Annotated[Path, typer.Argument(help="Run directory, runs/NAME/ID.", show_default=False)]


class Weights(StrEnum):
    """Which weights of a run."""

    ema = "ema"
    global_ = "global"

    @property
    def average(self) -> bool:
        """Whether they are those of the moving average."""
        return self is Weights.ema


WeightsOption = Annotated[
    Weights,
    typer.Option("--model", help="The global model's moving average, or the global model itself."),
]


PluginsOption = Annotated[
    bool,
    typer.Option(
        "--plugins",
        help="Import the modules of your own that the run's experiment names; this runs their code.",
    ),
]


def load_experiment(file: Path, settings: list[str]) -> "Experiment":
    """Read an experiment file, which may name modules beside it or in the current folder."""
    from fedssl.experiment.experiment import Experiment

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


def load_run(folder: Path, *, plugins: bool) -> "Run":
    """Open a run, finished or not.

    Args:
        folder: The run directory.
        plugins: Import the modules that its experiment names, from the current folder too.
    """
    from fedssl.views.run import Run

    if plugins:
        find_modules_in(Path.cwd())
    return Run(folder, plugins=plugins)


def load_run_with_model(folder: Path, *, plugins: bool) -> "Run":
    """Open a run for its model; of one that is not finished, say whose weights that is."""
    run = load_run(folder, plugins=plugins)
    if not run.is_finished:
        typer.echo(f"{folder} is not finished: its newest checkpoint's model is taken", err=True)
    return run
