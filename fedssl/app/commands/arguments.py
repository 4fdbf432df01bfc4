"""Arguments that several commands share, such as experiment files and settings, and functions that read them."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedssl.app.commands.completion import complete_setting
from fedssl.core.console import Console
from fedssl.core.plugin_modules import find_modules_in
from fedssl.core.processes import quick_imports
from fedssl.core.toml import read_toml, split_setting

if TYPE_CHECKING:  # --help must not wait for torch
    from fedssl.experiment.experiment import Experiment
    from fedssl.views.run import Run

Files = Annotated[list[Path], typer.Argument(help="Experiment files (TOML).", show_default=False)]
FilesOrRuns = Annotated[
    list[Path],
    typer.Argument(
        help="Experiment files (TOML); with --resume, also folders of runs.", show_default=False
    ),
]
File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a setting, e.g. --set method.threshold=0.9; repeatable.",
        autocompletion=complete_setting,
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="Run directory, runs/NAME/ID.", show_default=False)]


class Weights(StrEnum):
    """The weights of a run that a command can use."""

    ema = "ema"
    global_ = "global"

    @property
    def average(self) -> bool:
        """Whether these are the weights of the moving average."""
        return self is Weights.ema


WeightsOption = Annotated[
    Weights,
    typer.Option(
        "--model", help="ema: the global model's moving average; global: the global model itself."
    ),
]


PluginsOption = Annotated[
    bool,
    typer.Option(
        "--plugins",
        help="Import your own modules that the run's experiment names; this runs their code.",
    ),
]


def check_files(
    files: Iterable[Path], settings: Iterable[str] | None = None, *, runs: bool = False
) -> None:
    """Raise `InputError` if a file or a setting has a mistake that can be told before seconds pass in which torch is imported.

    Args:
        files: Experiment files.
        settings: Settings of the form ``a.b=value``.
        runs: Whether the folder of a run may be named in place of a file.
    """
    tables = read_files(files, settings, runs=runs)
    if not tables:  # folders of runs alone
        return
    with quick_imports():
        from fedssl.experiment.form import check_form

    for file, table in tables.items():
        find_modules_in(file.absolute().parent, Path.cwd())
        check_form(file, table, settings or ())


def read_files(
    files: Iterable[Path], settings: Iterable[str] | None = None, *, runs: bool = False
) -> dict[Path, dict[str, Any]]:
    """Return the tables of experiment files, without those of records, which are read with the paths of the record.

    Args:
        files: Experiment files.
        settings: Settings of the form ``a.b=value``.
        runs: Whether the folder of a run may be named in place of a file.

    Raises:
        InputError: A file cannot be read, or a setting has another form.
    """
    tables = {file: read_toml(file) for file in files if not (runs and file.is_dir())}
    for setting in settings or ():
        split_setting(setting)
    return {file: table for file, table in tables.items() if not _is_of_record(file)}


def _is_of_record(file: Path) -> bool:
    """Return whether a file is the experiment file of a run's record."""
    from fedssl.record.run_path import EXPERIMENT, has_begun

    return file.name == EXPERIMENT and has_begun(file.parent)


def check_runs(folders: Iterable[Path]) -> None:
    """Raise `InputError` if a folder holds no run, before seconds pass in which torch is imported."""
    from fedssl.record.run_path import check_run

    for folder in folders:
        check_run(folder)


def check_folders_of_runs(folders: Iterable[Path]) -> None:
    """Raise `InputError` if a path is not a folder, before seconds pass in which torch is imported."""
    from fedssl.record.run_path import check_folder_of_runs

    for folder in folders:
        check_folder_of_runs(folder)


def load_experiment(file: Path, settings: list[str]) -> "Experiment":
    """Read an experiment file; it may name modules in its own folder or in the current folder.

    In the experiment file of a record, paths and modules are found where the run found them.
    """
    from fedssl.experiment.experiment import Experiment
    from fedssl.record.located import read_located
    from fedssl.record.own_modules import folders_of_own_modules

    # The folder of a record holds no modules of the user, but the record says where the user's modules are.
    if _is_of_record(file):
        find_modules_in(*folders_of_own_modules(file.parent), Path.cwd())
        return read_located(file.parent, settings)
    find_modules_in(file.absolute().parent, Path.cwd())
    return Experiment.load(file, settings)


def load_seeds(file: Path, settings: list[str], seeds: int) -> "list[Experiment]":
    """Read an experiment file once per seed: with the file's seed, the next seed, and so on."""
    first = load_experiment(file, settings).seed
    return [load_experiment(file, [*settings, f"seed={first + i}"]) for i in range(seeds)]


def say_changed_kinds(experiments: "Iterable[Experiment]", console: Console) -> None:
    """Tell which settings a section keeps and loses because it got another kind, once for all seeds and runs."""
    for line in dict.fromkeys(line for each in experiments for line in each.changed_kinds):
        console.say(line)


def load_run(folder: Path, *, plugins: bool) -> "Run":
    """Open a run, finished or not.

    Args:
        folder: The run directory.
        plugins: Import the users' modules that the run's experiment names, also from the current folder.
    """
    from fedssl.views.run import Run

    if plugins:
        find_modules_in(Path.cwd())
    return Run(folder, plugins=plugins)


def load_run_with_model(folder: Path, *, plugins: bool) -> "Run":
    """Open a run for its model; tell the user if the model is that of a checkpoint."""
    run = load_run(folder, plugins=plugins)
    if not run.is_finished:
        typer.echo(
            f"{folder} is not finished: the model of its newest checkpoint is used", err=True
        )
    return run
