"""Keep one process of a deployment running on this host: start it again whenever it ends, until told to stop.

    python -m fedssl.app.deploy.keeper FILE.json COMMAND...

The keeper holds a lock on FILE.lock for as long as it lives, and its process ends with it. Only that lock tells whether
a keeper lives: a process number does not, because the system gives it to another process in time.
"""

import contextlib
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

from fedssl.core.processes import signal_when_parent_ends

PAUSE = 2.0
"""A process that ended is started again after this many seconds."""

PATIENCE = 20.0
"""A process that is told to end has this many seconds to do so."""


def keep(
    command: list[str],
    started: Callable[[int, int], None],
    pause_after: Callable[[int, int], float | None] = lambda starts, code: PAUSE,
) -> int:
    """Run a command again and again until SIGTERM or SIGINT; return the last exit code.

    Args:
        command: The command to run.
        started: Is called after each start with the process number and the number of starts so far.
        pause_after: Is called after each end with the number of starts and the exit code. It returns after how many
            seconds the command is started again; None: it is not started again.
    """
    over = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    starts = code = 0
    while not over.is_set():
        process = _start_process(command)
        starts += 1
        started(process.pid, starts)
        while process.poll() is None and not over.wait(0.2):
            pass
        code = _end_process(process)
        if over.is_set() or (pause := pause_after(starts, code)) is None:
            break
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{stamp} ended with exit code {code}; started again in {pause:g} s", flush=True)
        over.wait(pause)
    return code


def is_kept(file: Path) -> bool:
    """Return whether a keeper lives, by the lock beside its file."""
    try:
        with _lock_file(file).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_report(file: Path) -> dict[str, int] | None:
    """Return a keeper's report on its process: ``keeper``, ``process`` and ``starts``; None if no keeper lives.

    All three are 0 while a keeper that has just begun has not written its report yet.
    """
    try:
        said: dict[str, int] = json.loads(file.read_text())
    except (OSError, ValueError):
        said = {"keeper": 0, "process": 0, "starts": 0}
    # The lock is checked last, so that the report is that of the keeper that holds the lock.
    return said if is_kept(file) else None


@contextlib.contextmanager
def _hold_lock(file: Path) -> Iterator[None]:
    """Hold the lock of a keeper inside the block, and remove the report of an earlier keeper."""
    with _lock_file(file).open("ab") as lock:
        for _ in range(20):  # another process may hold the lock for a moment to check it
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.05)
        else:
            sys.exit(f"another keeper already keeps {file.stem} running")
        file.unlink(missing_ok=True)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _lock_file(file: Path) -> Path:
    return file.with_suffix(".lock")


def _start_process(command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own; on Linux it ends with this process."""
    this = os.getpid()

    def end_with_keeper() -> None:
        signal_when_parent_ends(signal.SIGTERM)
        if os.getppid() != this:  # the keeper died before the call
            os._exit(1)

    # Code between fork and exec is safe here, because the keeper has only one thread.
    return subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_keeper)


def _end_process(process: "subprocess.Popen[bytes]") -> int:
    """End a process, if it still runs, and the processes that it has started; return its exit code."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    _signal_group(process.pid, signal.SIGKILL)  # ends the rest of its group
    return process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def main() -> None:
    """Keep the given command running, and write a report on its process to the file."""
    file = Path(sys.argv[1])

    def started(process: int, starts: int) -> None:
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps({"keeper": os.getpid(), "process": process, "starts": starts}))
        beside.replace(file)

    with _hold_lock(file):
        keep(sys.argv[2:], started)


if __name__ == "__main__":
    main()
