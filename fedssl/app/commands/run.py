"""`fedssl run`: runs experiments, several at a time where that is faster, and compares them at the end."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedssl.app.commands.arguments import (
    FilesOrRuns,
    Settings,
    check_files,
    load_seeds,
    say_changed_kinds,
)
from fedssl.app.commands.compare import show_comparison
from fedssl.app.guard import complain, guarded, warn
from fedssl.core.console import Console
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.extras import require
from fedssl.core.processes import quick_imports

if TYPE_CHECKING:
    from fedssl.app.interrupts import Interrupts
    from fedssl.app.sweep.packing import Packing
    from fedssl.experiment.experiment import Experiment


@guarded
def run(
    files: FilesOrRuns,
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
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of runs at a time; 1: one after the other. By default, as many as the machine has room for, if "
            "the files leave the engine open (auto) and the runs are not too short.",
        ),
    ] = None,
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

      fedssl run runs/digits-fixmatch/20260101-120000-seed0 --resume
    """
    # The options --engine and --workers are settings like any other; they come last, so they win.
    overrides = list(settings or [])
    overrides += [f"engine.kind={engine}"] if engine else []
    overrides += [f"engine.workers={workers}"] if workers else []
    check_files(files, overrides, runs=True)
    named = _find_named_runs(files, out, seeds, resume=resume)
    with quick_imports():
        from fedssl.app.interrupts import interruptible

    console = Console()
    # Run all experiments, and compare the finished runs if there are several.
    with interruptible() as interrupts:
        experiments = _load_experiments(list(named.values()) or files, overrides, seeds)
        if not named:
            _refuse_twins(experiments)
        say_changed_kinds(experiments, console)
        finished = _run(
            experiments,
            list(named) if named else _choose_folders(experiments, out),
            console,
            interrupts,
            jobs=jobs,
            resume=resume,
            plain=plain,
        )
        if len(finished) > 1:
            from fedssl.views.comparison.comparison import Comparison

            comparison = Comparison.of_runs(finished, force=True)
            show_comparison(comparison, out, console, brief=True)
    if failed := len(experiments) - len(finished):
        raise RunFailed(f"{failed} of {len(experiments)} runs failed")


def _find_named_runs(
    files: list[Path], out: Path | None, seeds: int, *, resume: bool
) -> dict[Path, Path]:
    """Return the experiment file of each run that is named by its folder; empty if experiment files are named.

    A folder that is named twice counts once.

    Raises:
        InputError: A folder holds no run, or it is named without ``--resume`` or beside experiment files, a folder or seeds.
    """
    from fedssl.record.run_path import EXPERIMENT, has_begun, resume_command, run_below

    folders = list({file.resolve(): file for file in files if file.is_dir()}.values())
    for folder in folders:
        if not has_begun(folder):
            below = run_below(folder)
            remedy = f"name one of its runs, such as {below}" if below else "name a TOML file"
            raise InputError(str(folder), "is a folder that holds no run", remedy)
        if not resume:
            remedy = f"go on with it: {resume_command(folder)}"
            raise InputError(str(folder), "is the folder of a run", remedy)
    if folders and (any(file.is_file() for file in files) or out is not None or seeds > 1):
        raise InputError(
            str(folders[0]),
            "is the folder of a run, which says its own file, seed and folder",
            "name folders of runs alone, without --out and --seeds",
        )
    return {folder: folder / EXPERIMENT for folder in folders}


def _load_experiments(files: list[Path], settings: list[str], seeds: int) -> list["Experiment"]:
    """Return each file's experiment with `seeds` seeds, from the file's own seed on.

    Raises:
        InputError: This machine cannot run an experiment.
    """
    with quick_imports():
        from fedssl.app.simulation import check_engine

    experiments = [each for file in files for each in load_seeds(file, settings, seeds)]
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
    jobs: int | None,
    resume: bool,
    plain: bool,
) -> list[Path]:
    """Run all experiments, on one engine or side by side, and return the run directories of the finished runs."""
    with quick_imports():
        from fedssl.app.runs import Runs
        from fedssl.app.simulation import Engine
        from fedssl.views.screen.display import PlainDisplay, make_display

    with Engine() as engine:
        engine.start(experiments[0])  # the workers start while the experiments are checked
        packing = _check_and_pack(experiments, jobs)
        if packing.jobs > 1:
            return _run_side_by_side(
                experiments, folders, packing, console, resume=resume, plain=plain
            )
        runs = Runs(
            engine,
            console,
            interrupts,
            display=lambda: PlainDisplay(console) if plain else make_display(console),
            resume=resume,
            complain=complain,
            warn=warn,
        )
        finished, _ = runs.run(experiments, folders)
    return finished


def _check_and_pack(experiments: list["Experiment"], jobs: int | None) -> "Packing":
    """Check all experiments, and return how many of them run at a time.

    Unless the user says how many, runs go side by side only if all of them leave their engine open, and if that saves more
    time than the start of their processes takes.
    """
    from fedssl.app.engine_choice import PROCESS, estimate_seconds
    from fedssl.app.simulation import check_experiment
    from fedssl.app.sweep.packing import ONE_BY_ONE, pack
    from fedssl.clients.local_data import simulated_federation

    is_open = jobs is not None or all(each.engine.kind == "auto" for each in experiments)
    may_share = is_open and len(experiments) > 1
    seconds = 0.0
    for experiment in experiments:
        check_experiment(experiment)
        if may_share and not experiment.federation.private:
            seconds += estimate_seconds(experiment, simulated_federation(experiment))
    if not may_share:
        return ONE_BY_ONE
    packing = pack(experiments, jobs)
    pays = seconds * (1 - 1 / packing.jobs) > PROCESS
    return packing if jobs is not None or pays else ONE_BY_ONE


def _run_side_by_side(
    experiments: list["Experiment"],
    folders: list[Path | None],
    packing: "Packing",
    console: Console,
    *,
    resume: bool,
    plain: bool,
) -> list[Path]:
    """Run the experiments that are not finished, several at a time; return the run directories of the finished runs."""
    with quick_imports():
        from fedssl.app.runs import describe_start, open_directory, title_of, where_recorded
        from fedssl.app.sweep.display import make_display
        from fedssl.app.sweep.points import Point, count_runs
        from fedssl.app.sweep.side_by_side import run_side_by_side

    # Open each run's folder, which refuses what cannot be used before anything runs, and find the runs that are left.
    paths, left = [], []
    for experiment, folder in zip(experiments, folders, strict=True):
        with contextlib.closing(open_directory(experiment, folder, resume=resume)) as directory:
            paths.append(directory.path)
            if not directory.is_finished:
                left.append((Point(experiment, (), frozenset()), directory.path))
            if resume and not directory.continues:
                title = title_of(experiment)
                console.tell(f"{title}: {describe_start(directory, experiment)}")
    points, folders_left = [point for point, _ in left], [path for _, path in left]
    done = len(paths) - len(left)
    console.say(
        f"{count_runs(points)}, {packing.jobs} at a time (--jobs 1: one after the other); {done} done already"
    )
    if packing.warning:
        console.say(packing.warning)
    # Run them in processes that open the folders again.
    failed: set[Path] = set()

    def complain_of(number: int, reason: str) -> None:
        experiment = points[number].experiment
        failed.add(folders_left[number])
        complain(reason, f"{experiment.name} seed {experiment.seed}: ")

    try:
        run_side_by_side(
            points,
            folders_left,
            packing,
            make_display(console, points, done, plain=plain),
            ended=lambda number: console.say(where_recorded(folders_left[number])),
            failed=complain_of,
        )
    except KeyboardInterrupt as error:
        error.add_note("to go on, run the same command again with --resume")
        raise
    return [path for path in paths if path not in failed]


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
