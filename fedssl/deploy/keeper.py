"""Keep one process of a deployment running on this host: started again whenever it ends, until it is told to stop.

    python -m fedssl.deploy.keeper FILE.json COMMAND...

The file says who keeps what; it is gone once nothing runs any more.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

PAUSE = 2.0
"""Seconds before a process that ended is started again."""

PATIENCE = 20.0
"""Seconds that a process has to end when it is told to."""


def keep(file: Path, command: list[str]) -> None:
    """Run a command again and again until SIGTERM or SIGINT."""
    over = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    starts = 0
    try:
        while not over.is_set():
            process = subprocess.Popen(command, start_new_session=True)
            starts += 1
            _write(file, {"keeper": os.getpid(), "process": process.pid, "starts": starts})
            while process.poll() is None and not over.wait(0.2):
                pass
            if over.is_set():
                _end(process)
                return
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            print(f"{stamp} ended with {process.returncode}; started again", flush=True)
            over.wait(PAUSE)
    finally:
        file.unlink(missing_ok=True)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it has started."""
    _signal(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    _signal(process.pid, signal.SIGKILL)  # of its group, whoever is left
    process.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _write(file: Path, what: dict[str, int]) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(what))
    beside.replace(file)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2:])
