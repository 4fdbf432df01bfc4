"""`fedssl sweep`: runs all points of a sweep, several at a time, and compares them at the end."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedssl.app.commands.arguments import Files, load_seeds, read_files, say_changed_kinds
from fedssl.app.commands.compare import show_comparison
from fedssl.app.commands.completion import complete_setting
from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.extras import require
from fedssl.core.plugin_modules import find_modules_in
from fedssl.core.processes import quick_imports
from fedssl.core.toml import read_toml

if TYPE_CHECKING:
    from fedssl.app.sweep.axes import Assignment, Axis
    from fedssl.app.sweep.ledger import Ledger
    from fedssl.app.sweep.packing import Packing
    from fedssl.app.sweep.points import Point
    from fedssl.experiment.settings import FamilyAt

Values = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        autocompletion=complete_setting,
        help="A setting and its values, e.g. --set method.threshold=0.9,0.95; all combinations of several --set run.",
    ),
]


@guarded
def sweep(
    files: Files,
    settings: Values = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Number of runs of each point: with the file's seed, the next seed, ..."
        ),
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep; by default runs/sweep-NAME.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of runs at a time; 1: each run has all workers of its file's engine.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list the runs, and run nothing.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print plain lines, no live screen.")
    ] = False,
) -> None:
    """Run experiments with all combinations of settings, several at a time, and compare them.

    Where kinds are swept, a setting is set at the kinds that have it. The same command again runs what is left.

    Examples:
      fedssl sweep experiments/digits/fixmatch.toml --set method.threshold=0.8,0.9,0.95 --seeds 3

      fedssl sweep experiments/digits/*.toml --seeds 5 --dry-run

      fedssl sweep mine.toml --set method.kind=supervised,fixmatch,flexmatch --set method.unlabeled_ratio=2

      fedssl sweep mine.toml --set federation.partition.alpha=0.1,1 --set train.lr=0.01,0.02,0.05 --jobs 4
    """
    _check_points(files, settings or [])
    with quick_imports():
        from fedssl.app.interrupts import interruptible
        from fedssl.app.sweep.axes import parse_axes
        from fedssl.app.sweep.ledger import Ledger
        from fedssl.app.sweep.points import count_runs

    console = Console()
    # Span the points of the sweep and find those that are left to run.
    with interruptible():
        axes = parse_axes(settings or [])
        points = _make_points(files, axes, seeds, console)
        say_changed_kinds((point.experiment for point in points), console)
        folder = out or Path("runs") / f"sweep-{points[0].experiment.name}"
        todo = _unfinished_points(points, folder)
        packing = _pack(todo, jobs) if todo else None
        # List them, or run them side by side; then compare all finished points.
        if dry_run:
            _list_points(points, folder, packing, console)
            return
        with Ledger(folder, points, _describe_command(files, axes, seeds)) as ledger:
            if packing is not None:
                _run(todo, len(points) - len(todo), folder, packing, ledger, console, plain)
        _compare(points, folder, console)
    if ledger.failures:
        _list_failures(ledger, folder, console)
        raise RunFailed(f"{len(ledger.failures)} of {count_runs(points)} failed")


def _describe_command(files: list[Path], axes: "list[Axis]", seeds: int) -> dict[str, Any]:
    """Return the command's files, settings and seeds for the ledger."""
    settings = {axis.key: list(axis.values) for axis in axes}
    return {"files": [str(file) for file in files], "settings": settings, "seeds": seeds}


def _check_points(files: list[Path], settings: list[str]) -> None:
    """Raise `InputError` if a file or a point has a mistake that can be told before seconds pass in which torch is imported."""
    tables = read_files(files, settings)
    with quick_imports():
        from fedssl.app.sweep.axes import parse_axes
        from fedssl.experiment.form import check_form
        from fedssl.experiment.outline import Outline, Unsure

    axes = parse_axes(settings)
    try:
        assigned, _ = _assign(files, axes, Outline.read().family_at)
    except Unsure:  # `_make_points` will tell
        return
    for file, assignment in assigned:
        overrides = _overrides(assignment)
        with _name_run_in_errors(f"with {', '.join(overrides)}" if overrides else ""):
            if file in tables:
                check_form(file, tables[file], overrides)


def _assign(
    files: list[Path], axes: "list[Axis]", family_at: "FamilyAt"
) -> "tuple[list[tuple[Path, Assignment]], list[str]]":
    """Return the file and the settings of each point, and a sentence on each setting that a point's kinds lack."""
    from fedssl.app.sweep.applicable import leave_out_unknown
    from fedssl.app.sweep.axes import spread

    find_modules_in(*(file.absolute().parent for file in files), Path.cwd())
    assignments = spread(axes)
    tables = [table for table in map(read_toml, files) for _ in assignments]
    kept, said = leave_out_unknown(tables, assignments * len(files), family_at)
    # A setting is set at the kinds that have it, so points may become the same.
    numbers = [number for number, _ in enumerate(files) for _ in assignments]
    points = dict.fromkeys(zip(numbers, kept, strict=True))
    return [(files[number], assignment) for number, assignment in points], said


def _overrides(assignment: "Assignment") -> list[str]:
    """Return the settings of a point as texts of ``--set``."""
    return [f"{key}={text}" for key, text in assignment]


def _make_points(
    files: list[Path], axes: "list[Axis]", seeds: int, console: Console
) -> "list[Point]":
    with quick_imports():
        from fedssl.app.sweep.points import Point, refuse_twins
        from fedssl.experiment.families import family_at

    varied = frozenset(axis.key for axis in axes if len(axis.values) > 1)
    assigned, said = _assign(files, axes, family_at)
    for line in said:
        console.say(line)
    points = []
    for file, assignment in assigned:
        overrides = _overrides(assignment)
        with _name_run_in_errors(f"with {', '.join(overrides)}" if overrides else ""):
            experiments = load_seeds(file, overrides, seeds)
        points += [Point(experiment, assignment, varied) for experiment in experiments]
    refuse_twins(points)
    if len(points) > 1:
        require("pandas", "sweep", "the comparison of several runs")
    return points


def _unfinished_points(points: "list[Point]", folder: Path) -> "list[Point]":
    """Return the points that are not finished.

    Raises:
        InputError: A point cannot run, or a recorded run has other settings than its point.
    """
    with quick_imports():
        from fedssl.app.simulation import check_experiment
        from fedssl.app.sweep.points import refuse_changed, state_of

    refuse_changed(points, folder)
    todo = [point for point in points if state_of(folder / point.name) != "finished"]
    for point in todo:
        with _name_run_in_errors(f"{point.label} seed {point.experiment.seed}"):
            check_experiment(point.experiment)
    return todo


def _pack(todo: "list[Point]", jobs: int | None) -> "Packing":
    from fedssl.app.simulation import check_engine
    from fedssl.app.sweep.packing import pack

    packing = pack([point.experiment for point in todo], jobs)
    for point in todo:
        check_engine(packing.as_run(point.experiment))
    return packing


@contextlib.contextmanager
def _name_run_in_errors(run: str) -> Iterator[None]:
    """Add the name of the run to an `InputError` of the block."""
    try:
        yield
    except InputError as error:
        raise (error.within(f"{run}: ") if run else error) from None


def _list_points(
    points: "Sequence[Point]", folder: Path, packing: "Packing | None", console: Console
) -> None:
    """Print the state of each point, and how many points there are of each state."""
    from fedssl.app.sweep.points import count_runs, state_of

    states = [state_of(folder / point.name) for point in points]
    for point, state in zip(points, states, strict=True):
        console.say(f"{state:<8}  {folder / point.name}")
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("finished", "begun", "new"))
    at_a_time = f"; {packing.jobs} at a time" if packing is not None else ""
    console.say(f"{count_runs(points)}: {counts}{at_a_time}")


def _run(
    todo: "list[Point]",
    done: int,
    folder: Path,
    packing: "Packing",
    ledger: "Ledger",
    console: Console,
    plain: bool,
) -> None:
    """Run the points that are left, and record failures in the ledger."""
    from fedssl.app.sweep.display import make_display
    from fedssl.app.sweep.points import count_runs
    from fedssl.app.sweep.side_by_side import run_side_by_side

    console.say(f"{count_runs(todo)}, {packing.jobs} at a time; {done} done already")
    if packing.warning:
        console.say(packing.warning)
    try:
        run_side_by_side(
            todo,
            [folder / point.name for point in todo],
            packing,
            make_display(console, todo, done, plain=plain),
            failed=lambda number, reason: ledger.failed(todo[number], reason),
        )
    except KeyboardInterrupt as error:
        error.add_note("to go on, run the same command again")
        raise


def _compare(points: "list[Point]", folder: Path, console: Console) -> None:
    """Compare the finished runs, if there are at least two."""
    from fedssl.app.sweep.points import state_of

    paths = [folder / point.name for point in points]
    finished = [path for path in paths if state_of(path) == "finished"]
    if len(finished) > 1:
        from fedssl.views.comparison.comparison import Comparison

        show_comparison(Comparison.of_runs(finished, force=True), folder, console)


def _list_failures(ledger: "Ledger", folder: Path, console: Console) -> None:
    """Print which runs failed and why, one line per run; a table would break the paths."""
    from fedssl.core.text import last_line

    console.print("failed", style="bold")
    for name, reason in ledger.failures.items():
        text = f" {folder / name}: {last_line(reason)}"
        console.tell(text)
