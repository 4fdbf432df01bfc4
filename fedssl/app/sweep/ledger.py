"""``sweep.json``: what was asked, the runs and their folders, and why some failed in the latest start."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock

from fedssl.app.sweep.points import Point
from fedssl.core.errors import InputError
from fedssl.core.files import PARTIAL, write_atomically
from fedssl.record.run_path import LOCK, SWEEP, unwritable


class Ledger:
    """Keep the books of a sweep, and other sweeps out of its folder; use it as a context manager.

    Args:
        out: The sweep's folder.
        points: Its runs.
        asked: What the command said, as JSON can hold it.

    Raises:
        InputError: On entry: the folder cannot be written to, or another sweep is at it.
    """

    def __init__(self, out: Path, points: Sequence[Point], asked: dict[str, Any]) -> None:
        self._out = out
        self._points = points
        self._asked = asked
        self._lock = filelock.FileLock(out / LOCK)
        self.failures: dict[str, str] = {}
        """Why runs failed, by name."""

    def __enter__(self) -> "Ledger":
        self._refuse_what_is_no_sweep()
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._write()
        except filelock.Timeout:
            raise InputError(
                "--out", f"another sweep is at {self._out}", "wait for it, or name another folder"
            ) from None
        except OSError as error:
            self._lock.release()
            raise unwritable(self._out, str(error.strerror)) from None
        return self

    def __exit__(self, *details: object) -> None:
        self._lock.release()

    def _refuse_what_is_no_sweep(self) -> None:
        """Raise `InputError` if the folder holds anything that no sweep has put there."""
        if not self._out.is_dir() or (self._out / SWEEP).exists():
            return
        if {path.name for path in self._out.iterdir()} - {LOCK, SWEEP + PARTIAL}:
            problem = f"{self._out} is not empty and holds no sweep"
            raise InputError("--out", problem, "name another folder")

    def failed(self, point: Point, reason: str) -> None:
        """Note that a run failed, and why."""
        self.failures[point.name] = reason
        self._write()

    def _write(self) -> None:
        table = {**self._asked, "runs": [self._line(point) for point in self._points]}
        text = json.dumps(table, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self._out / SWEEP, text.encode())

    def _line(self, point: Point) -> dict[str, Any]:
        line: dict[str, Any] = {
            "folder": point.name,
            "name": point.experiment.name,
            "seed": point.experiment.seed,
            "settings": dict(point.settings),
        }
        if point.name in self.failures:
            line["failed"] = self.failures[point.name]
        return line
