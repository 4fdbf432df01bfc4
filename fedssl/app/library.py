"""Run an experiment from Python: in a notebook, a script, or a test."""

import atexit
import contextlib
import functools
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fedssl.app.runs import open_directory, open_recorders
from fedssl.app.simulation import Engine, check_engine, check_experiment
from fedssl.core.console import Console
from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.extras import is_installed, require
from fedssl.experiment.experiment import Experiment
from fedssl.record.own_modules import changes_of_own_modules
from fedssl.record.rows import Observer
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import has_begun
from fedssl.views.run import Run
from fedssl.views.screen.display import make_display
from fedssl.views.screen.guarded_display import GuardedDisplay

if TYPE_CHECKING:
    from fedssl.views.comparison.comparison import Comparison

log = logging.getLogger(__name__)

Given = Experiment | Path | str | Mapping[str, Any]
"""An experiment, the path of its TOML file, or its settings as nested tables."""

Runs = Run | Path | str | Iterable["Runs"]
"""A run, its directory, a folder with runs at any depth, or several of these."""


@overload
def run(
    experiment: Given,
    *,
    seeds: None = None,
    out: Path | str | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    progress: bool = True,
) -> Run: ...


@overload
def run(
    experiment: Given,
    *,
    seeds: int,
    out: Path | str | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    progress: bool = True,
) -> list[Run]: ...


def run(
    experiment: Given,
    *,
    seeds: int | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    progress: bool = True,
) -> Run | list[Run]:
    """Run one experiment as ``fedssl run`` does, to the same bits, and return its record.

    The workers are kept for the next call, which then starts at once. They end with the process, or when a run fails or
    is interrupted. To end them sooner, pass an engine of your own and use it as a context manager.

    Args:
        experiment: The experiment, the path of its TOML file, or its settings as nested tables.
        seeds: Number of runs, one after the other: with the experiment's seed, the next seed, and so on. A list of runs is returned
            then, also for one seed. None: one run, which is returned itself.
        out: Run directory; with `seeds`, a folder that holds one directory for each seed, ``NAME-seedSEED``. None: fresh ones below
            ``runs/``.
        resume: Go on with a run that did not end: the run in `out`, else the newest run below ``runs/`` with the same
            name, seed and settings. A run that has ended is returned as it is.
        engine: Engine whose workers to use; None: the engine that is kept between calls.
        progress: Show the run's progress: a display that is updated in place in a notebook or on a terminal, and lines
            elsewhere.

    Raises:
        InputError: The experiment is wrong, or asks for something that this machine does not have.
        RunFailed: The run could not go on.
        KeyboardInterrupt: The run was interrupted. The message says how to go on.
    """
    chosen = as_experiment(experiment)
    _refuse_others("engine", engine, Engine | None, 'with_settings("engine.kind=serial") names one')
    folder = None if out is None else Path(out)
    if seeds is None:
        return _run(chosen, folder, engine, resume=resume, progress=progress)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError("seeds", f"is {seeds!r}", "give a number of seeds, at least 1")
    found = []
    for seed in range(chosen.seed, chosen.seed + seeds):
        own = chosen.with_settings(f"seed={seed}")
        place = None if folder is None else folder / f"{own.name}-seed{seed}"
        found.append(_run(own, place, engine, resume=resume, progress=progress))
    return found


def compare(
    runs: Runs,
    *,
    baseline: str | None = None,
    bound: str | None = None,
    measures: Sequence[str] = (),
    yardsticks: bool = False,
    force: bool = False,
    out: Path | str | None = None,
) -> "Comparison":
    """Compare runs as ``fedssl compare`` does: runs of one name and settings are the seeds of one line.

    A notebook shows the result as tables, and ``print`` as text; it has the tables as data frames (``lines``, ``runs``, ``curves`` ...),
    ``plot()`` and ``latex()``.

    Args:
        runs: Runs, run directories, folders with runs at any depth, or lists of these, such as ``run(..., seeds=3)`` returns.
        baseline: The line, or settings such as ``"method.kind=supervised"``, that the others are compared with; see
            `fedssl.views.comparison.groups.grouped`.
        bound: The line, or settings, from which the share of the gap is counted that the others close.
        measures: Measures that give every class the same weight and that a table is to show: ``"macro_f1"``,
            ``"balanced_accuracy"``, ``"auroc"``.
        yardsticks: Measure classical classifiers on the same labels; they need scikit-learn.
        force: Compare runs even if their data or their splits differ, all with the first one.
        out: Folder to which page, tables and pictures are written; None: no file is written.

    Raises:
        InputError: There is no finished run, data or splits differ, or no line has the name of the baseline or the bound.
    """
    require("pandas", "compare", "the tables")
    if yardsticks:
        require("sklearn", "yardsticks", "the classifiers")
    from fedssl.metrics.balanced import MEASURES
    from fedssl.views.comparison.comparison import Comparison
    from fedssl.views.comparison.files import write_files

    for name in measures:
        if name not in MEASURES:
            raise InputError("measures", f"no {name!r}", suggest_nearest(name, MEASURES))
    paths = list(_paths(runs))
    if not paths:
        raise InputError("compare", "no runs are named")
    with _names_of_python():
        found = Comparison.of_runs(
            paths,
            force=force,
            yardsticks=yardsticks,
            baseline=baseline,
            bound=bound,
            by_data=not force,
            measures=measures,
        )
        if out is not None:
            write_files(found, Path(out), latex=is_installed("matplotlib"))
    return found


def _paths(runs: Runs) -> Iterator[Path]:
    """Yield the path of each run and folder."""
    if isinstance(runs, Run):
        yield runs.path
    elif isinstance(runs, (str, Path)):
        yield Path(runs)
    else:
        _refuse_others("compare", runs, Iterable, "give runs, their folders, or lists of these")
        for each in runs:
            yield from _paths(each)


def _run(
    chosen: Experiment,
    folder: Path | None,
    engine: Engine | None,
    *,
    resume: bool,
    progress: bool,
) -> Run:
    """Run one experiment, and return its record."""
    check_engine(chosen)
    check_experiment(chosen)
    with (
        _names_of_python(),
        contextlib.closing(open_directory(chosen, folder, resume=resume)) as directory,
    ):
        if not directory.is_finished:
            display = [GuardedDisplay(make_display(Console()), log.warning)] if progress else []
            _run_in(directory, chosen, engine, display)
    return Run(directory.path)


def as_experiment(experiment: Given) -> Experiment:
    """Return an experiment that is given as an `Experiment`, as the path of its file, or as its settings."""
    if isinstance(experiment, Experiment):
        return experiment
    if isinstance(experiment, Mapping):
        return Experiment.from_dict(experiment)
    _refuse_others("experiment", experiment, str | Path, "give an Experiment, a file or a table")
    return Experiment.load(Path(experiment))


def _refuse_others(name: str, value: object, wanted: Any, remedy: str) -> None:
    """Raise `InputError` for an argument of another type; a notebook does not check types."""
    if not isinstance(value, wanted):
        raise InputError(name, f"is {value!r}", remedy)


ARGUMENTS = {
    "--resume": "resume=True",
    "--force": "force=True",
    "--out": "out",
    "--baseline": "baseline",
    "--bound": "bound",
}
"""The arguments of `run` and `compare`, by the options of the command line that messages name."""


@contextlib.contextmanager
def _names_of_python() -> Iterator[None]:
    """Let an `InputError` of the block name arguments of `run` and `compare` in place of options of the command line."""
    try:
        yield
    except InputError as error:
        raise InputError(*map(_as_argument, (error.field, error.problem, error.remedy))) from None


def _as_argument(text: str) -> str:
    """Return a text with arguments in place of options; one that writes a whole command stays as it is."""
    if "fedssl " in text:
        return text
    for option, argument in ARGUMENTS.items():
        text = text.replace(option, argument)
    return text


def _run_in(
    directory: RunDirectory,
    experiment: Experiment,
    engine: Engine | None,
    display: Sequence[Observer],
) -> None:
    """Run the rounds that a directory does not hold yet; end the workers if the run ends early."""
    found = directory.load()
    for flaw in (*found.damaged, *changes_of_own_modules(directory.path, experiment)):
        log.warning(flaw)
    workers = engine or _kept_engine()
    try:
        with open_recorders(experiment, directory, log.warning) as recorders:
            workers.run(experiment, [*recorders, *display], found.snapshot)
    except BaseException as error:
        workers.close()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {_how_to_go_on(directory)}") from None
        if has_begun(directory.path):
            error.add_note(_how_to_go_on(directory))
        raise
    if engine is None:
        # The function that is registered last is called first. Ray has registered its own end on its import, and the
        # workers must end before Ray.
        atexit.unregister(workers.close)
        atexit.register(workers.close)


@functools.cache
def _kept_engine() -> Engine:
    """Return this process's engine, whose workers are kept between calls."""
    # In a notebook, Ray's import asks for widgets of Ray and of tqdm, but fedssl shows no widgets.
    logging.getLogger("ray.widgets").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "IProgress not found")
    return Engine()


def _how_to_go_on(directory: RunDirectory) -> str:
    return (
        f"the record so far is in {directory.path}: "
        f"go on with run(..., out={str(directory.path)!r}, resume=True)"
    )
