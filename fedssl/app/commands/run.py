"""`fedssl run`: runs experiments one after another, and compares them at the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedssl.app.commands.arguments import Files, Settings, load_seeds
from fedssl.app.commands.compare import compare_runs
from fedssl.app.guard import complain, guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.extras import require
from fedssl.core.processes import quick_imports

if TYPE_CHECKING:
    from fedssl.app.interrupts import Interrupts
    from fedssl.experiment.experiment import Experiment


@guarded
def run(
    files: Files,
    settings: Settings = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="auto, serial, ray or flower; overrides the file's engine.",
            autocompletion=lambda: ["auto", "flower", "ray", "serial"],
        ),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Number of Ray actors, or auto; overrides the file's number.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; for several runs, the folder that holds their run directories."
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Number of runs of each file: with its seed, the next seed, and so on."
        ),
    ] = 1,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume killed runs; finished runs are kept."),
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print plain lines, no live screen.")
    ] = False,
) -> None:
    """Run experiments; several runs end with a table that compares them.

    Examples:
      fedssl run experiments/digits/fixmatch.toml

      fedssl run experiments/digits/*.toml --seeds 5

      fedssl run experiments/digits/fixmatch.toml --set federation.partition.alpha=0.1 --engine serial

      fedssl run experiments/digits/*.toml --seeds 5 --resume
    """
    with quick_imports():
        from fedssl.app.interrupts import interruptible

    # The options --engine and --workers are settings like any other; they come last, so they win.
    overrides = list(settings or [])
    overrides += [f"engine.kind={engine}"] if engine else []
    overrides += [f"engine.workers={workers}"] if workers else []
    console = Console()
    # Run all experiments, and compare the finished runs if there are several.
    with interruptible() as interrupts:
        experiments = _load_experiments(files, overrides, seeds)
        finished = _run(
            experiments,
            _choose_folders(experiments, out),
            console,
            interrupts,
            resume=resume,
            plain=plain,
        )
        if len(finished) > 1:
            compare_runs(finished, out, console, force=True, brief=True)
    if failed := len(experiments) - len(finished):
        raise RunFailed(f"{failed} of {len(experiments)} runs failed")


def _load_experiments(files: list[Path], settings: list[str], seeds: int) -> list["Experiment"]:
    """Return each file's experiment with `seeds` seeds, from the file's own seed on.

    Raises:
        InputError: Two runs have the same name and seed, or this machine cannot run an experiment.
    """
    with quick_imports():
        from fedssl.app.simulation import check_engine

    experiments = [each for file in files for each in load_seeds(file, settings, seeds)]
    _refuse_twins(experiments)
    for experiment in experiments:
        check_engine(experiment)
    if len(experiments) > 1:
        require("pandas", "run", "the comparison of several runs")
    return experiments


def _run(
    experiments: list["Experiment"],
    folders: list[Path | None],
    console: Console,
    interrupts: "Interrupts",
    *,
    resume: bool,
    plain: bool,
) -> list[Path]:
    """Run all experiments on one engine, and return the run directories of the finished runs."""
    with quick_imports():
        from fedssl.app.runs import Runs
        from fedssl.app.simulation import Engine, check_experiment
        from fedssl.views.screen.display import PlainDisplay, make_display

    with Engine() as engine:
        engine.start(experiments[0])  # the workers start while the experiments are checked
        for experiment in experiments:
            check_experiment(experiment)
        runs = Runs(
            engine,
            console,
            interrupts,
            display=lambda: PlainDisplay(console) if plain else make_display(console),
            resume=resume,
            complain=complain,
        )
        finished, _ = runs.run(experiments, folders)
    return finished


def _choose_folders(experiments: list["Experiment"], out: Path | None) -> list[Path | None]:
    """Return the run directory of each experiment; None lets the run choose its own."""
    if out is None or len(experiments) == 1:
        return [out] * len(experiments)
    return [out / f"{experiment.name}-seed{experiment.seed}" for experiment in experiments]


def _refuse_twins(experiments: "list[Experiment]") -> None:
    names = [(experiment.name, experiment.seed) for experiment in experiments]
    for name, seed in names:
        if names.count((name, seed)) > 1:
            raise InputError(
                "name", f"two experiments are called {name!r} with seed {seed}", "rename one"
            )
