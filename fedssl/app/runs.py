"""Experiments run one after the other: where each is recorded, and which of them is done or goes on."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedssl.app.interrupts import Interrupts
from fedssl.app.simulation import Engine
from fedssl.core.console import Console
from fedssl.core.errors import InputError, RunFailed
from fedssl.experiment.experiment import Experiment
from fedssl.record.checkpoint import Found
from fedssl.record.resume import directory_to_resume
from fedssl.record.rows import Observer
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import REPORT, new_run_path
from fedssl.views.reports.writer import ReportWriter
from fedssl.views.screen.guarded_display import GuardedDisplay
from fedssl.views.trackers.tracking import tracking


class Runs:
    """Runs experiments on one engine after the other, for a person who watches.

    Args:
        engine: Its workers are kept from run to run.
        console: What they watch.
        interrupts: What they asked for by signal.
        display: Makes what shows the next run to them.
        resume: Go on with runs that did not end, and leave those that did.
        complain: Told of an error that does not end all runs, and of which run it is.
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
    ) -> None:
        self._engine = engine
        self._console = console
        self._interrupts = interrupts
        self._display = display
        self._resume = resume
        self._complain = complain

    def run(
        self, experiments: Sequence[Experiment], folders: Sequence[Path | None]
    ) -> tuple[list[Path], int]:
        """Run all, and return where those that ended are recorded and how many failed.

        Args:
            experiments: What to run.
            folders: Where each is recorded; None: below ``runs/``.

        Raises:
            InputError: One of the folders cannot be used, and nothing has run then; or the only one's record.
            RunFailed: The only one failed.
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
                    self._complain(error, f"{_title(experiment)}: ")
                else:
                    finished.append(directory.path)
        return finished, failed

    def _run_one(self, experiment: Experiment, directory: RunDirectory) -> None:
        if directory.is_finished:
            self._say(f"{_title(experiment)}: already done, in {directory.path}")
            return
        found = directory.load()
        if self._resume:
            for flaw in found.damaged:
                self._complain(flaw, f"{_title(experiment)}: ")
            self._say(f"{_title(experiment)}: {_beginning(directory, found)}")

        def complain(what: str) -> None:
            self._complain(what, f"{_title(experiment)}: ")

        try:
            with keeping(experiment, directory, complain) as keepers:
                display = GuardedDisplay(self._display(), complain)
                observers = [*keepers, display, self._interrupts]
                self._engine.run(experiment, observers, found.snapshot)
        except KeyboardInterrupt as error:
            error.add_note("to go on, run the same command again with --resume")
            raise
        report = directory.path / REPORT
        page = f", report: {report}" if report.exists() else ""
        self._say(f"  recorded in {directory.path}{page}")

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", soft_wrap=True)


@contextlib.contextmanager
def keeping(
    experiment: Experiment, directory: RunDirectory, complain: Callable[[str], None]
) -> Iterator[list[Observer]]:
    """Yield all who keep something of a run: its record, its report, and its tracker if it has one.

    Args:
        experiment: What runs.
        directory: Where it is recorded.
        complain: Told of a tracker that failed.
    """

    def incident(round: int, what: str) -> None:
        directory.note(round, what)
        complain(what)

    with tracking(experiment, directory.path, incident) as trackers:
        yield [directory, ReportWriter(directory.path), *trackers]


def open_directory(experiment: Experiment, folder: Path | None, *, resume: bool) -> RunDirectory:
    """Return the directory that an experiment is recorded in.

    Args:
        experiment: What to run.
        folder: Where; None: a fresh one below ``runs/``.
        resume: Go on with a run that did not end; see `directory_to_resume`.

    Raises:
        InputError: It cannot be used.
    """
    if resume:
        return directory_to_resume(experiment, folder)
    return RunDirectory(folder or new_run_path(experiment))


def _title(experiment: Experiment) -> str:
    return f"{experiment.name} seed {experiment.seed}"


def _beginning(directory: RunDirectory, found: Found) -> str:
    """Say where a run that should be resumed begins."""
    if found.snapshot is not None:
        return f"goes on after round {found.snapshot.round} of {directory.path}"
    if directory.continues:
        return f"there is no checkpoint in {directory.path}; it begins with round 1"
    return f"there is no run of it; it begins in {directory.path}"
