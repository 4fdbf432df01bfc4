"""The ledger ``sweep.json``: the command, the runs and their folders, and why runs failed in the latest start."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock

from fedssl.app.sweep.points import Point
from fedssl.core.errors import InputError
from fedssl.core.files import PARTIAL, write_atomically
from fedssl.record.run_path import LOCK, SWEEP, unwritable_error


class Ledger:
    """Record a sweep in ``sweep.json``, and lock its folder against other sweeps; use it as a context manager.

    Args:
        out: Folder of the sweep.
        points: Points of the sweep.
        asked: Files, settings and seeds of the command, as values for JSON.

    Raises:
        InputError: On entry, the folder cannot be written to, is not the folder of a sweep, or another sweep uses it.
    """

    def __init__(self, out: Path, points: Sequence[Point], asked: dict[str, Any]) -> None:
        self._out = out
        self._points = points
        self._asked = asked
        self._lock = filelock.FileLock(out / LOCK)
        self.failures: dict[str, str] = {}
        """The reason why a run failed, by the name of its point."""

    def __enter__(self) -> "Ledger":
        self._refuse_other_folders()
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._write()
        except filelock.Timeout:
            raise InputError(
                "--out", f"another sweep uses {self._out}", "wait for it, or name another folder"
            ) from None
        except OSError as error:
            self._lock.release()
            raise unwritable_error(self._out, str(error.strerror)) from None
        return self

    def __exit__(self, *details: object) -> None:
        self._lock.release()

    def _refuse_other_folders(self) -> None:
        """Raise `InputError` if the folder is neither empty nor the folder of a sweep."""
        if not self._out.is_dir() or (self._out / SWEEP).exists():
            return
        if {path.name for path in self._out.iterdir()} - {LOCK, SWEEP + PARTIAL}:
            problem = f"{self._out} is not empty and holds no sweep"
            raise InputError("--out", problem, "name another folder")

    def failed(self, point: Point, reason: str) -> None:
        """Record that a run failed, and why."""
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
