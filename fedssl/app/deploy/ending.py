"""Stop the runs of a deployment in order before its processes end, so that every run can go on later."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedssl.app.deploy.admission import POLL_SECONDS
from fedssl.app.deploy.opening import Opened
from fedssl.app.deploy.options import say
from fedssl.app.deploy.submissions import Submissions
from fedssl.core.errors import InputError, RunFailed
from fedssl.record.run_path import is_running

RELEASE_SECONDS = 30.0
"""The server app of a stopped run leaves its run directory within this many seconds."""


@dataclass(frozen=True)
class ActiveRun:
    """A run that is in progress.

    Args:
        run_id: Flower's id of the run.
        directory: Its run directory; None: the run was not submitted by `fedssl deploy run`.
    """

    run_id: str
    directory: Path | None

    @property
    def name(self) -> str:
        """The run's name and directory as people know them, such as ``digits/20261130-105903-seed0``."""
        if self.directory is None:
            return self.run_id
        return f"{self.directory.parent.name}/{self.directory.name}"


def find_active_runs(opened: Opened) -> list[ActiveRun]:
    """Return the runs in progress, as the SuperLink says, or as their records say if it does not answer."""
    if not opened.is_served():
        return []
    submitted = Submissions(opened.deployment.submissions).read()
    places = {run_id: opened.deployment.runs / record for run_id, record in submitted.items()}
    try:
        runs = opened.operator.runs()
    except RunFailed:
        last = {directory: run_id for run_id, directory in places.items()}
        return [ActiveRun(run_id, d) for d, run_id in last.items() if is_running(d)]
    active = [str(run["run-id"]) for run in runs if not run["status"].startswith("finished")]
    return [ActiveRun(run_id, places.get(run_id)) for run_id in active]


def end_active_runs(opened: Opened, *, force: bool) -> None:
    """Refuse to end a deployment whose runs are in progress; with `force`, stop these runs in order first.

    Raises:
        InputError: A run is in progress, and `force` is not given.
    """
    active = find_active_runs(opened)
    if active and not force:
        names = ", ".join(run.name for run in active)
        raise InputError(
            "down",
            f"a run is in progress: {names}",
            f"wait for its end, or stop it so that it can go on later: {opened.command('down --force')}",
        )
    for run in active:
        say(f"stopping {run.name}; to go on later: the command of the run with --resume")
        try:
            opened.operator.stop_run(run.run_id)
        except RunFailed as error:
            if "already finished" not in str(error):  # it may have ended just now
                say(f"{run.name} could not be stopped: {error}; it ends with the processes")
    wait_for_release([run.directory for run in active if run.directory is not None])


def wait_for_release(directories: Sequence[Path]) -> None:
    """Wait until no server app records in the run directories any more, `RELEASE_SECONDS` at most."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while any(map(is_running, directories)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
