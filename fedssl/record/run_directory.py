"""The run directory: written as the run goes, so that a killed run leaves every finished round readable."""

import csv
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from fedssl.config import Experiment
from fedssl.data.federation import Federation
from fedssl.engine.plan import available_cores
from fedssl.errors import InputError
from fedssl.record.rows import (
    ClientRow,
    NamedArrays,
    Observer,
    Outcome,
    RoundEnd,
    RoundRow,
    as_record,
    summarize,
)

if TYPE_CHECKING:
    import pyarrow as pa

VERSIONED = ("fedssl", "flwr", "ray", "torch", "torchvision", "numpy", "pandas", "scikit-learn")


class RunDirectory(Observer):
    """Record a run under one folder.

    Args:
        path: The folder; made when the run begins.

    Raises:
        InputError: It cannot be written to, or already holds something.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        parent = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise _unwritable(path, f"{parent} is not a folder you may write to")
        if path.exists() and any(path.iterdir()):
            raise InputError(
                "--out", f"{path} is not empty", "name another folder, or remove this one"
            )
        self._experiment: Experiment | None = None
        self._files: dict[str, TextIO] = {}

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Write what runs, on what, and who holds which image."""
        self._experiment = experiment
        try:
            (self.path / "checkpoint").mkdir(parents=True)
        except OSError as error:
            raise _unwritable(self.path, str(error.strerror)) from None
        (self.path / "experiment.toml").write_text(experiment.to_toml(), encoding="utf-8")
        self._write_json("environment.json", environment())
        import pyarrow.parquet as pq  # imported here: a check of an experiment needs none

        pq.write_table(partition_table(federation), self.path / "partition.parquet")
        self._event("began", name=experiment.name, seed=experiment.seed)

    def round_ended(self, end: RoundEnd) -> None:
        """Append the round and its clients, and every so often save the weights."""
        assert self._experiment is not None
        for client in end.clients:
            self._append("clients.csv", client)
        for failure in end.failures:
            self._event("client_failed", **dataclasses.asdict(failure))
        for incident in end.incidents:
            self._event("incident", round=end.row.round, what=incident)
        self._append("rounds.csv", end.row)
        for file in self._files.values():
            file.flush()
        if end.row.round % self._experiment.server.checkpoint_every == 0:
            self._checkpoint(end)

    def ended(self, outcome: Outcome) -> None:
        """Write the final weights and the summary."""
        assert self._experiment is not None
        save_atomically(outcome.arrays, self.path / "model.safetensors")
        save_atomically(outcome.ema, self.path / "ema.safetensors")
        if outcome.state:
            save_atomically(outcome.state, self.path / "state.safetensors")
        self._write_json("summary.json", summarize(self._experiment, outcome))
        self._event("ended", seconds=outcome.seconds)
        self._close()

    def failed(self, reason: str) -> None:
        """Write why the run stopped, if it had begun."""
        if self._experiment is None:
            return
        self._event("failed", reason=reason)
        self._close()

    def _append(self, name: str, row: ClientRow | RoundRow) -> None:
        record = as_record(row)
        if name not in self._files:
            self._files[name] = (self.path / name).open("a", encoding="utf-8", newline="")
            csv.DictWriter(self._files[name], list(record)).writeheader()
        csv.DictWriter(self._files[name], list(record)).writerow(record)

    def _event(self, kind: str, **details: Any) -> None:
        name = "events.jsonl"
        if name not in self._files:
            self._files[name] = (self.path / name).open("a", encoding="utf-8")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._files[name].write(json.dumps({"time": now, "event": kind, **details}) + "\n")
        self._files[name].flush()

    def _checkpoint(self, end: RoundEnd) -> None:
        folder = self.path / "checkpoint"
        parts = {"model": end.arrays, "ema": end.ema, "state": end.state}
        everything = {f"{part}/{k}": v for part, arrays in parts.items() for k, v in arrays.items()}
        newest = folder / f"round-{end.row.round:06d}.safetensors"
        save_atomically(everything, newest)
        for old in folder.glob("round-*.safetensors"):
            if old != newest:
                old.unlink()

    def _write_json(self, name: str, table: Mapping[str, Any]) -> None:
        clean = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in table.items()}
        (self.path / name).write_text(json.dumps(clean, indent=2) + "\n", encoding="utf-8")

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def _unwritable(path: Path, why: str) -> InputError:
    return InputError("--out", f"cannot write to {path}: {why}", "name a folder you may write to")


def new_run_path(experiment: Experiment, root: Path = Path("runs")) -> Path:
    """Make and return a fresh folder ``runs/NAME/ID``, the ID of time and seed; no two processes get the same.

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
                raise _unwritable(path, "something is in the way") from None
        except OSError as error:
            raise _unwritable(path, str(error.strerror)) from None
        else:
            return path
    raise AssertionError("there is always a next number")


def save_atomically(arrays: NamedArrays, path: Path) -> None:
    """Write named arrays as safetensors; a reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    # Not save_file: it makes files that nobody but their owner can read.
    partial.write_bytes(save({name: np.asarray(a, order="C") for name, a in arrays.items()}))
    partial.replace(path)


def environment() -> dict[str, Any]:
    """Return what a run ran on: machine, versions, command."""
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": available_cores(),
        "versions": versions,
    }


def partition_table(federation: Federation) -> "pa.Table":
    """Return one line a training image.

    Its row and client (-1: at the server, -2: held back for validation), its true class (-1: unknown), whether it is
    labeled, and with what label.
    """
    import pyarrow as pa

    return pa.table(
        {
            "row": _column(np.arange(len(federation.owner))),
            "client": _column(federation.owner),
            "label": _column(federation.data.train.labels),
            "labeled": _column(federation.labeled),
            "given": _column(federation.given),
        }
    )


def _column(values: npt.NDArray[Any]) -> "pa.Array":
    """Return a column over an array's own memory; `pa.array` would import pandas to ask whether it is a series."""
    import pyarrow as pa

    packed = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else values
    memory = pa.py_buffer(np.ascontiguousarray(packed))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, memory])
