"""Keep one process of a deployment running on this host: started again whenever it ends, until it is told to stop.

    python -m fedssl.app.deploy.keeper FILE.json COMMAND...

The keeper holds a lock on FILE.lock for as long as it lives, and its process ends with it. Whether a service is kept is
known by that lock alone: process numbers are given to other processes in time.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

PAUSE = 2.0
"""Seconds before a process that ended is started again."""

PATIENCE = 20.0
"""Seconds that a process has to end when it is told to."""

PR_SET_PDEATHSIG = 1
"""The number of this option of Linux' prctl(2)."""


def keep(
    command: list[str],
    started: Callable[[int, int], None],
    is_over: Callable[[int, int], bool] = lambda starts, code: False,
) -> int:
    """Run a command again and again until SIGTERM or SIGINT; return the last exit code.

    Args:
        command: What runs.
        started: Told the process number and how often it was started, after each start.
        is_over: Says, by how often the command was started and its exit code, that it is not started again.
    """
    over = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    starts = code = 0
    while not over.is_set():
        process = _start(command)
        starts += 1
        started(process.pid, starts)
        while process.poll() is None and not over.wait(0.2):
            pass
        code = _end(process)
        if over.is_set() or is_over(starts, code):
            break
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{stamp} ended with {code}; started again", flush=True)
        over.wait(PAUSE)
    return code


def is_kept(file: Path) -> bool:
    """Say whether a keeper lives, by the lock beside its file."""
    try:
        with _lock_of(file).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def kept(file: Path) -> dict[str, int] | None:
    """Return what a keeper says of its process: ``keeper``, ``process`` and ``starts``; None if no keeper lives.

    A keeper that has just begun has said nothing yet: then all three are 0.
    """
    try:
        said: dict[str, int] = json.loads(file.read_text())
    except (OSError, ValueError):
        said = {"keeper": 0, "process": 0, "starts": 0}
    # The lock is looked at last: what was read before is then of the keeper that holds it.
    return said if is_kept(file) else None


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold the lock of a keeper; what an earlier one left in the file is gone."""
    with _lock_of(file).open("ab") as lock:
        for _ in range(20):  # somebody may be looking
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.05)
        else:
            sys.exit(f"{file.stem} is kept by another keeper")
        file.unlink(missing_ok=True)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _lock_of(file: Path) -> Path:
    return file.with_suffix(".lock")


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a process, in a session of its own, that ends with this one."""
    this = os.getpid()

    def end_with_parent() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != this:  # it died before that
                os._exit(1)

    # The keeper has one thread, so that code between fork and exec is safe.
    return subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_parent)


def _end(process: "subprocess.Popen[bytes]") -> int:
    """End a process, if it still runs, and what it has started; return its exit code."""
    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    _signal(process.pid, signal.SIGKILL)  # of its group, whoever is left
    return process.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def main() -> None:
    """Keep the command of the command line, and say in the file what runs."""
    file = Path(sys.argv[1])

    def started(process: int, starts: int) -> None:
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps({"keeper": os.getpid(), "process": process, "starts": starts}))
        beside.replace(file)

    with _alone(file):
        keep(sys.argv[2:], started)


if __name__ == "__main__":
    main()
