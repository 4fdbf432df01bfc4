"""Remove a recorded run, and nothing else."""

import shutil
from pathlib import Path

import filelock

from fedssl.core.errors import InputError
from fedssl.record.run_path import (
    DATA,
    EVENTS,
    LOCK,
    PARTITION,
    check_run,
    is_running,
    run_folders,
)

BESIDE_THE_EXPERIMENT = (DATA, PARTITION, EVENTS)
"""Every run directory holds these files. A folder of a user's own may hold an experiment.toml, but not these."""


def check_removable(path: Path) -> None:
    """Raise `InputError` if a folder is not the directory of exactly one run, or the run goes on at this moment."""
    check_run(path)
    if path.is_symlink():
        raise InputError(str(path), "is a link", "name the run directory itself")
    missing = [name for name in BESIDE_THE_EXPERIMENT if not (path / name).is_file()]
    if missing:
        problem = f"is kept: it has no {missing[0]}, so it may be no run directory"
        raise InputError(str(path), problem, "remove the folder by hand if it is one")
    below = (folder for folder in path.iterdir() if folder.is_dir() and not folder.is_symlink())
    within = next((run for folder in below for run in run_folders(folder)), None)
    if within is not None:
        raise InputError(str(path), f"is kept: it holds another run, {within}", "remove that first")
    if is_running(path):
        raise _running_error(path)


def remove_run(path: Path) -> None:
    """Remove a run directory with everything in it.

    Raises:
        InputError: The folder is not a run directory, its run goes on at this moment, or it cannot be removed.
    """
    check_removable(path)
    lock = filelock.FileLock(path / LOCK, thread_local=False)
    try:
        with lock.acquire(timeout=0):  # nobody can go on with the run while it is removed
            shutil.rmtree(path.absolute())
    except filelock.Timeout:
        raise _running_error(path) from None
    except OSError as error:
        problem = f"cannot be removed: {error.filename}: {error.strerror}"
        raise InputError(str(path), problem) from None


def _running_error(path: Path) -> InputError:
    return InputError(str(path), "is kept: its run goes on at this moment", "stop it first")
