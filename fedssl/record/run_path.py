"""The folders and files of a run's record: a new folder for a new run, and whether a folder holds a run."""

import itertools
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from fedssl.core.errors import InputError
from fedssl.core.files import PARTIAL

if TYPE_CHECKING:  # a list of runs must not wait for torch
    from fedssl.experiment.experiment import Experiment

EXPERIMENT = "experiment.toml"
PARTITION = "partition.csv"
DATA = "data.json"
ENVIRONMENT = "environment.json"
SUMMARY = "summary.json"
ROUNDS = "rounds.csv"
CLIENTS = "clients.csv"
CLASSES = "classes.csv"
NUMBERS = "numbers.csv"
EVENTS = "events.jsonl"
MODEL = "model.safetensors"
EMA = "ema.safetensors"
STATE = "state.safetensors"
REPORT = "report.html"
TAGS = "tags.json"
SWEEP = "sweep.json"
"""This file in a sweep's folder lists the sweep's runs in their order."""

LOCK = ".lock"

RUNS = Path("runs")
"""Runs without a folder of their own are recorded below this folder."""

MAKE_ONE = "`fedssl new` writes an experiment file, and `fedssl run FILE` runs it"
"""What to do before there is any run."""


def unwritable_error(path: Path, why: str) -> InputError:
    """Return the error for a folder that cannot be written to."""
    return InputError("--out", f"cannot write to {path}: {why}", "name a folder you may write to")


def check_output(path: Path, suffix: str) -> None:
    """Raise `InputError` if writing a file would destroy anything but an older output of the same kind.

    Args:
        path: The file to write.
        suffix: Suffix of files of this kind, such as ``".csv"``.
    """
    if not path.exists():
        return
    if not path.is_file() or path.suffix != suffix or has_begun(path.parent):
        raise InputError("--out", f"{path} is there already", f"name another file, NAME{suffix}")


def new_run_path(experiment: "Experiment", root: Path = RUNS) -> Path:
    """Create and return a new folder ``runs/NAME/ID``. The ID has the time and the seed; no two processes get the same.

    Raises:
        InputError: The folder cannot be made.
    """
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.seed}"
    for number in itertools.count(1):
        path = root / experiment.name / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not path.is_dir():
                raise unwritable_error(path, "something is in the way") from None
        except OSError as error:
            raise unwritable_error(path, str(error.strerror)) from None
        else:
            return path
    raise AssertionError("there is always a next number")


def has_begun(path: Path) -> bool:
    """Return whether a folder holds a run. Its experiment file is the last file that is written before round 1."""
    return (path / EXPERIMENT).exists()


def check_run(path: Path) -> None:
    """Raise `InputError` if a folder holds no run; the error names a run below the folder, if there is one."""
    if not has_begun(path):
        below = run_below(path)
        remedy = f"name one of its runs, such as {below}" if below else ""
        raise InputError(str(path), "holds no run", remedy)


def check_folder_of_runs(path: Path) -> None:
    """Raise `InputError` if a path is not a folder, in which runs could be."""
    if path.is_dir():
        return
    remedy = "name run directories, or folders that hold run directories"
    if path.exists():
        raise InputError(str(path), "is not a folder", remedy)
    raise InputError(str(path), "no such folder", MAKE_ONE if path == RUNS else remedy)


def run_below(path: Path) -> Path | None:
    """Return the last run by name at any depth below a folder; None if there is none."""
    return max((folder for folder in path.glob("**/") if has_begun(folder)), default=None)


def run_folders(path: Path) -> Iterator[Path]:
    """Yield the run directories below a folder; folders inside a run directory are not searched."""
    for folder, below, _ in os.walk(path):
        if has_begun(Path(folder)):
            below.clear()
            yield Path(folder)
        below.sort()


def is_running(path: Path) -> bool:
    """Return whether a process records a run in a folder at this moment; a killed run's folder is free again."""
    if not (path / LOCK).exists():
        return False
    lock = filelock.FileLock(path / LOCK, thread_local=False)
    try:
        with lock.acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a folder that cannot be written to
        return False


def resume_command(path: Path) -> str:
    """Return the command that goes on with a run; the runs of a deployment are in its folder ``runs/``."""
    deployment = path.absolute().parent.parent.parent
    if (deployment / "deployment.toml").exists():
        where = f"--folder {shlex.quote(str(deployment))}"
        return f"fedssl deploy run {shlex.quote(str(path))} --resume {where}"
    return f"fedssl run {shlex.quote(str(path))} --resume"


def way_on(path: Path, until: str) -> str:
    """Return what a person does who wants more of a run that is not finished than there is.

    Args:
        path: The run directory.
        until: What to wait for if the run goes on at this moment, such as ``"its end"``.
    """
    if is_running(path):
        return f"it goes on at this moment: wait for {until}"
    return f"go on with it: {resume_command(path)}"


def never_began(path: Path) -> bool:
    """Return whether a folder does not exist, is empty, or holds only files of a run killed before it began."""
    early = {ENVIRONMENT, DATA, PARTITION}
    leftovers = {LOCK, *early, *(name + PARTIAL for name in (*early, EXPERIMENT))}
    return not path.exists() or {item.name for item in path.iterdir()} <= leftovers
