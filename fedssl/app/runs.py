"""Run experiments one after the other: skip finished runs, resume others, and record each in its directory."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedssl.app.interrupts import Interrupts
from fedssl.app.simulation import Engine
from fedssl.core.console import Console
from fedssl.core.errors import FedsslError, InputError, RunFailed
from fedssl.core.user_code import place_in_user_code
from fedssl.experiment.experiment import Experiment
from fedssl.record.checkpoint import Found
from fedssl.record.own_modules import changes_of_own_modules
from fedssl.record.resume import directory_to_resume
from fedssl.record.rows import Observer
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import REPORT, has_begun, new_run_path, resume_command
from fedssl.views.reports.writer import ReportWriter
from fedssl.views.screen.guarded_display import GuardedDisplay
from fedssl.views.trackers.tracking import tracking


class Runs:
    """Run experiments one after the other on one engine, for a person who watches.

    Args:
        engine: The engine; its workers are kept from run to run.
        console: The console that the person watches.
        interrupts: Tells whether the person asked by a signal to stop.
        display: Makes a display for the next run.
        resume: Go on with runs that did not end, and leave finished runs as they are.
        complain: Is called with an error that does not end all runs, and with the title of its run.
        warn: Is called with a sentence on a run that goes on nevertheless, and with the title of the run.
        says_way_on: Whether an error says how to go on with its run.
    """

    def __init__(
        self,
        engine: Engine,
        console: Console,
        interrupts: Interrupts,
        *,
        display: Callable[[], Observer],
        resume: bool,
        complain: Callable[[BaseException | str, str], None],
        warn: Callable[[str, str], None],
        says_way_on: bool = True,
    ) -> None:
        self._engine = engine
        self._console = console
        self._interrupts = interrupts
        self._display = display
        self._resume = resume
        self._complain = complain
        self._warn = warn
        self._says_way_on = says_way_on

    def run(
        self, experiments: Sequence[Experiment], folders: Sequence[Path | None]
    ) -> tuple[list[Path], int]:
        """Run all experiments; return the directories of the finished runs and the number of failed runs.

        Args:
            experiments: The experiments to run.
            folders: The directory in which to record each run; None: a fresh one below ``runs/``.

        Raises:
            InputError: A directory cannot be used (then no experiment has run), or there is only one experiment and its
                record cannot be used.
            RunFailed: There is only one experiment, and it failed.
        """
        finished: list[Path] = []
        failed = 0
        with contextlib.ExitStack() as stack:
            directories = []
            for experiment, folder in zip(experiments, folders, strict=True):
                directories.append(open_directory(experiment, folder, resume=self._resume))
                stack.callback(directories[-1].close)
            for experiment, directory in zip(experiments, directories, strict=True):
                try:
                    self._run_one(experiment, directory)
                except (RunFailed, InputError) as error:
                    if len(experiments) == 1:
                        raise
                    failed += 1
                    self._complain(error, f"{title_of(experiment)}: ")
                else:
                    finished.append(directory.path)
        return finished, failed

    def _run_one(self, experiment: Experiment, directory: RunDirectory) -> None:
        if directory.is_finished:
            self._console.say(f"{title_of(experiment)}: already done, in {directory.path}")
            return
        found = directory.load()
        if self._resume:
            for flaw in (*found.damaged, *changes_of_own_modules(directory.path, experiment)):
                self._warn(flaw, f"{title_of(experiment)}: ")
            start = describe_start(directory, experiment, found)
            self._console.tell(f"{title_of(experiment)}: {start}")

        def warn(what: str) -> None:
            self._warn(what, f"{title_of(experiment)}: ")

        try:
            with naming_user_line(), open_recorders(experiment, directory, warn) as recorders:
                display = GuardedDisplay(self._display(), warn)
                observers = [*recorders, display, self._interrupts]
                self._engine.run(experiment, observers, found.snapshot)
        except KeyboardInterrupt as error:
            error.add_note("to go on, run the same command again with --resume")
            raise
        except InputError:
            raise  # it says itself what to do
        except Exception as error:
            if self._says_way_on and has_begun(directory.path):
                error.add_note(
                    f"the record so far is in {directory.path}; to go on: {resume_command(directory.path)}"
                )
            raise
        self._console.say(where_recorded(directory.path))


@contextlib.contextmanager
def naming_user_line() -> Iterator[None]:
    """Turn an error of the user's code in a run into one line; the record of the run has the traceback.

    Raises:
        RunFailed: The block raised an error that passed a line of the user's.
    """
    try:
        yield
    except FedsslError:
        raise
    except Exception as error:
        if not (place := place_in_user_code(error)):
            raise
        said = " ".join(str(error).split())
        raise RunFailed(f"{place}: {type(error).__name__}: {said}") from error


def where_recorded(path: Path) -> str:
    """Return the line that tells where a finished run and its report are."""
    report = path / REPORT
    page = f", report: {report}" if report.exists() else ""
    return f"  recorded in {path}{page}"


@contextlib.contextmanager
def open_recorders(
    experiment: Experiment, directory: RunDirectory, warn: Callable[[str], None]
) -> Iterator[list[Observer]]:
    """Yield the observers that keep a run: its record, its report, and its tracker if it has one.

    Args:
        experiment: The experiment that runs.
        directory: The directory in which the run is recorded.
        warn: Is called with the error of a failed tracker.
    """

    def incident(round: int, what: str) -> None:
        directory.note(round, what)
        warn(what)

    with tracking(experiment, directory.path, incident) as trackers:
        yield [directory, ReportWriter(directory.path), *trackers]


def open_directory(experiment: Experiment, folder: Path | None, *, resume: bool) -> RunDirectory:
    """Return the directory in which to record an experiment's run.

    Args:
        experiment: The experiment to run.
        folder: The directory's path; None: a fresh one below ``runs/``.
        resume: Go on with a run that did not end; see `directory_to_resume`.

    Raises:
        InputError: The directory cannot be used.
    """
    if resume:
        return directory_to_resume(experiment, folder)
    return RunDirectory(folder or new_run_path(experiment))


def title_of(experiment: Experiment) -> str:
    """Return what lines of several runs call the run of an experiment."""
    return f"{experiment.name} seed {experiment.seed}"


def describe_start(
    directory: RunDirectory, experiment: Experiment, found: Found | None = None
) -> str:
    """Return a clause that says where a run begins that the user asked to resume, and which rounds it runs again.

    Args:
        directory: The run's directory, whose record is not cut back yet.
        experiment: The run's experiment.
        found: The checkpoint from which the run goes on, as far as it is known.
    """
    if not directory.continues:
        return f"begins anew: nothing in {directory.path}"
    snapshot = None if found is None else found.snapshot
    begin = 0 if snapshot is None else snapshot.round
    start = f"goes on after round {begin} of {directory.path}"
    if snapshot is None:
        start = f"there is no checkpoint in {directory.path}; the run begins with round 1"
    lost, every = directory.num_recorded - begin, experiment.server.checkpoint_every
    if lost <= 0:
        return start
    which = f"round {begin + 1} is" if lost == 1 else f"rounds {begin + 1} to {begin + lost} are"
    return f"{start}; {which} run again (server.checkpoint_every = {every})"
