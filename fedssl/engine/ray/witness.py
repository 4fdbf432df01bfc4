"""The witness of a run that depends on Ray: a small process that reports what ended the run if the run cannot."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedssl.engine.ray import witness_process

PATIENCE = 5.0
"""The witness should end within this many seconds after a goodbye; it takes about one millisecond."""


@dataclass(frozen=True)
class Record:
    """Where a run is recorded.

    Args:
        run: Folder of the run.
        events: File of its events, one JSON line each.
        lock: File that the process that writes to the folder locks.
    """

    run: Path
    events: Path
    lock: Path


class Witness:
    """Start a process that acts when this process ends without a goodbye.

    The witness then shows the cursor again, prints one line, appends a ``failed`` line to the run's events, and removes
    Ray's folder; see `witness_process`.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", witness_process.__file__],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C and a closed terminal must not end the witness
            cwd="/",
        )

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Tell the witness facts; a new fact replaces the old one of the same name. See `witness_process`."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # a witness that was killed costs the run nothing
            self._process.stdin.write(json.dumps(facts).encode() + b"\n")
            self._process.stdin.flush()

    @contextmanager
    def recording(self, record: Record | None) -> Iterator[None]:
        """Tell the witness where the current run is recorded, for the time of the block; None: nowhere."""
        if record is None:
            yield
            return
        files = {"events": str(record.events.absolute()), "lock": str(record.lock.absolute())}
        self.tell({"run": str(record.run), **files})
        try:
            yield
        finally:
            self.tell(dict.fromkeys(("run", *files)))

    def close(self) -> None:
        """Say goodbye, so that the witness ends without acting."""
        self.tell({"goodbye": True})
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
