"""Experiments run one after the other: where each is recorded, and which of them is done or goes on."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from fedssl.config import Experiment
from fedssl.errors import InputError, RunFailed
from fedssl.interrupts import Interrupts
from fedssl.record.checkpoint import Found
from fedssl.record.display import PlainDisplay, make_display
from fedssl.record.resume import directory_to_resume, outcome_of
from fedssl.record.rows import Outcome
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import new_run_path
from fedssl.simulation import Engine


class Runs:
    """Runs experiments on one engine after the other, for a person who watches.

    Args:
        engine: Its workers are kept from run to run.
        console: What they watch.
        interrupts: What they asked for by signal.
        plain: Lines instead of a live screen.
        resume: Go on with runs that did not end, and leave those that did.
        complain: Told of an error that does not end all runs, and of which run it is.
    """

    def __init__(
        self,
        engine: Engine,
        console: Console,
        interrupts: Interrupts,
        *,
        plain: bool,
        resume: bool,
        complain: Callable[[BaseException | str, str], None],
    ) -> None:
        self._engine = engine
        self._console = console
        self._interrupts = interrupts
        self._plain = plain
        self._resume = resume
        self._complain = complain

    def run(
        self, experiments: Sequence[Experiment], folders: Sequence[Path | None]
    ) -> tuple[list[tuple[Experiment, Outcome]], int]:
        """Run all, and return those that ended and how many failed.

        Args:
            experiments: What to run.
            folders: Where each is recorded; None: below ``runs/``.

        Raises:
            InputError: One of the folders cannot be used, and nothing has run then; or the only one's record.
            RunFailed: The only one failed.
        """
        finished: list[tuple[Experiment, Outcome]] = []
        failed = 0
        with contextlib.ExitStack() as stack:
            directories = []
            for experiment, folder in zip(experiments, folders, strict=True):
                directories.append(open_directory(experiment, folder, resume=self._resume))
                stack.callback(directories[-1].close)
            for experiment, directory in zip(experiments, directories, strict=True):
                try:
                    outcome = self._run_one(experiment, directory)
                except (RunFailed, InputError) as error:
                    if len(experiments) == 1:
                        raise
                    failed += 1
                    self._complain(error, f"{_title(experiment)}: ")
                else:
                    finished.append((experiment, outcome))
        return finished, failed

    def _run_one(self, experiment: Experiment, directory: RunDirectory) -> Outcome:
        if directory.is_finished:
            self._say(f"{_title(experiment)}: already done, in {directory.path}")
            return outcome_of(directory.path)
        found = directory.load()
        if self._resume:
            for flaw in found.damaged:
                self._complain(flaw, f"{_title(experiment)}: ")
            self._say(f"{_title(experiment)}: {_beginning(directory, found)}")
        display = PlainDisplay(self._console) if self._plain else make_display(self._console)
        observers = [directory, display, self._interrupts]
        try:
            outcome = self._engine.run(experiment, observers, found.snapshot)
        except KeyboardInterrupt as error:
            error.add_note("to go on, run the same command again with --resume")
            raise
        self._say(f"  recorded in {directory.path}")
        return outcome

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)


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
