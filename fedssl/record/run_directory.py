"""The run directory: written during the run, so that a killed run leaves every finished round readable."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from fedssl.core.arrays import as_safetensors
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.files import write_atomically
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.checkpoint import Checkpoints, Found, Lengths, is_due, other_version
from fedssl.record.leaks import remark_on_weights
from fedssl.record.lines import Lines, Table, has_other_columns
from fedssl.record.own_modules import own_modules
from fedssl.record.provenance import (
    check_partition,
    data_facts,
    environment,
    initial_weights,
    partition_table,
)
from fedssl.record.rows import (
    ClassRow,
    ClientRow,
    NumberRow,
    Observer,
    Outcome,
    RoundEnd,
    RoundRow,
    summarize,
)
from fedssl.record.run_path import (
    CLASSES,
    CLIENTS,
    DATA,
    EMA,
    ENVIRONMENT,
    EVENTS,
    EXPERIMENT,
    LOCK,
    MODEL,
    NUMBERS,
    PARTITION,
    ROUNDS,
    STATE,
    SUMMARY,
    has_begun,
    never_began,
    unwritable_error,
)
from fedssl.record.snapshot import Snapshot

LOCK_SECONDS = 0.5
"""A folder is in use if its lock is not free within this many seconds; who looks whether a run goes on holds it shortly."""

STARTS = ("began", "resumed")
"""The events with which a run begins or goes on."""

STOPS = ("failed", "interrupted")
"""The events that say that a run stopped before its end, and why."""

TABLES = {ROUNDS: RoundRow, CLIENTS: ClientRow, CLASSES: ClassRow, NUMBERS: NumberRow}


class RunDirectory(Observer):
    """Record a run in a folder, and go on with a run that did not end.

    Args:
        path: The folder, which is created when the run begins.
        resume: Whether to go on with the run in the folder, if there is one.

    Raises:
        InputError: The folder cannot be written to, already holds something, or is in use by another process.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        parent = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise unwritable_error(path, f"{parent} is not a folder you may write to")
        if not never_began(path) and not (resume and has_begun(path)):
            raise InputError(
                "--out",
                f"{path} is not empty",
                "name another folder, or remove this one"
                + (", or go on with its run: --resume" if has_begun(path) else ""),
            )
        self._lock = filelock.FileLock(path / LOCK, thread_local=False)
        self._continues = has_begun(path)
        self._checkpoints = Checkpoints(path)
        self._experiment: Experiment | None = None
        self._lengths: Lengths = {}
        self._files: dict[str, Lines] = {}
        self._last: tuple[Snapshot, Lengths] | None = None
        if self._continues:
            self._acquire()

    @property
    def continues(self) -> bool:
        """Whether the folder held a run that had begun when this object was made."""
        return self._continues

    @property
    def num_recorded(self) -> int:
        """Number of rounds in the record, before a run that goes on cuts it back to its checkpoint."""
        rounds = self.path / ROUNDS
        return max(0, rounds.read_bytes().count(b"\n") - 1) if rounds.exists() else 0

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds a run that came to its end."""
        return (self.path / SUMMARY).exists()

    def load(self) -> Found:
        """Return the checkpoint from which the run can go on. The record will be cut back to that checkpoint.

        Raises:
            InputError: The record or a checkpoint belongs to another experiment or another version of fedssl.
        """
        for name, kind in TABLES.items():
            if has_other_columns(self.path / name, kind):
                raise other_version(self.path / name)
        found = self._checkpoints.find()
        self._lengths = found.lengths
        return found

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Write the environment, the data's facts, the partition and the experiment; or open the record of a resumed run.

        The record of a resumed run is cut back to its checkpoint.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable_error(self.path, str(error.strerror)) from None
        self._acquire()
        with self._recording():
            if self._continues:
                check_partition(self.path / PARTITION, federation)
            else:
                facts = environment() | {"changed_kinds": experiment.changed_kinds}
                facts |= initial_weights(experiment)
                self._write(ENVIRONMENT, as_json(facts | {"own_modules": own_modules(experiment)}))
                known = {"weights_remark": remark_on_weights(experiment, federation)}
                self._write(DATA, as_json(data_facts(experiment, federation) | known))
                self._write(PARTITION, partition_table(federation))
                self._write(EXPERIMENT, experiment.to_toml().encode())
            kept = starts_and_stops(self.path / EVENTS, self._lengths.get(EVENTS, 0))
            for name, kind in TABLES.items():
                self._files[name] = Table(self.path / name, kind, self._lengths.get(name, 0))
            self._files[EVENTS] = Lines(self.path / EVENTS, self._lengths.get(EVENTS, 0))
            self._files[EVENTS].append(kept)
            self._experiment = experiment
            if '"event": "began"' not in kept and not self._lengths:
                self._event("began", name=experiment.name, seed=experiment.seed)
            if self._continues and not self._lengths:
                self._event("resumed", after_round=0, environment=environment())

    def resumed(self, snapshot: Snapshot) -> None:
        """Record that the run goes on, and the machine and software that it goes on with."""
        with self._recording():
            self._event("resumed", after_round=snapshot.round, environment=environment())
        self._last = snapshot, self._now()

    def round_ended(self, end: RoundEnd) -> None:
        """Append the round and its clients to the record, and write a checkpoint if one is due."""
        assert self._experiment is not None
        with self._recording():
            self._table(CLIENTS).add(end.clients)
            self._table(CLASSES).add(end.classes)
            self._table(NUMBERS).add(end.numbers)
            for failure in end.failures:
                self._event("client_failed", **dataclasses.asdict(failure))
            for incident in end.incidents:
                self._event("incident", round=end.row.round, what=incident)
            self._table(ROUNDS).add([end.row])
        if end.snapshot is None:
            return
        self._last = end.snapshot, self._now()
        due = is_due(end.row.round, self._experiment.server.checkpoint_every)
        if due and end.row.round < self._experiment.num_rounds:
            self._checkpoint()

    def ended(self, outcome: Outcome) -> None:
        """Write the final weights and the summary, which marks the run as finished; then remove the checkpoints."""
        assert self._experiment is not None
        with self._recording():
            self._write(MODEL, as_safetensors(outcome.model.arrays))
            self._write(EMA, as_safetensors(outcome.model.ema))
            if outcome.model.state:
                self._write(STATE, as_safetensors(outcome.model.state))
            self._event("ended", seconds=outcome.seconds)
            self._write(SUMMARY, as_json(summarize(self._experiment, outcome)))
        self._checkpoints.remove()
        (self.path / LOCK).unlink()
        self.close()

    def note(self, round: int, incident: str) -> None:
        """Record a problem after a round that does not end the run; once the run is over, do nothing."""
        if EVENTS in self._files:
            with self._recording():
                self._event("incident", round=round, what=incident)

    def waiting(self, what: str, until: datetime | None) -> None:
        """Record for which clients the server waits, and until when at most."""
        if EVENTS in self._files:
            with self._recording():
                last = None if until is None else until.isoformat(timespec="seconds")
                self._event("waiting", what=what, until=last)

    def failed(self, reason: str) -> None:
        """Record why the run failed, and write a checkpoint of its last finished round, if the run had begun."""
        self._stopped("failed", reason)

    def interrupted(self, reason: str) -> None:
        """Record who stopped the run, and write a checkpoint of its last finished round, if the run had begun."""
        self._stopped("interrupted", reason)

    def _stopped(self, event: str, reason: str) -> None:
        try:
            if self._experiment is not None:
                with self._recording():
                    self._event(event, reason=reason)
                self._checkpoint()
        finally:
            self.close()

    def close(self) -> None:
        """Close the files of the record and unlock the folder."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._lock.release()

    def _checkpoint(self) -> None:
        if self._last is None or not self._last[0].is_whole:
            return  # no round is over yet, or the last one could not be recorded
        with self._recording():
            for file in self._files.values():
                file.sync()
            self._checkpoints.save(*self._last)

    def _event(self, kind: str, **details: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._files[EVENTS].append(json.dumps({"time": now, "event": kind, **details}) + "\n")

    def _table(self, name: str) -> Table:
        table = self._files[name]
        assert isinstance(table, Table)
        return table

    def _now(self) -> Lengths:
        return {name: file.length for name, file in self._files.items()}

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self.path / name, content)

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Return a block that is recorded whole or not at all; its error says what to do if the disk fails."""
        before = self._now()
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(
                OSError
            ):  # if even cutting fails, resuming the run cuts the files
                for name, length in before.items():
                    self._files[name].cut(length)
            if not isinstance(error, OSError):
                raise
            raise RunFailed(
                f"cannot record in {self.path}: {error.strerror or error}; what was recorded before "
                "is kept: free space there, then run the same command again with --resume"
            ) from error

    def _acquire(self) -> None:
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=LOCK_SECONDS)
        except filelock.Timeout:
            raise InputError(
                "--out",
                f"{self.path} is in use by another process",
                "wait for its run to end, or name another folder",
            ) from None


def as_json(table: Mapping[str, Any]) -> bytes:
    """Return a table as JSON text in bytes; NaN becomes null."""
    clean = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in table.items()}
    return (json.dumps(clean, indent=2) + "\n").encode()


def starts_and_stops(events: Path, length: int) -> str:
    """Return the lines of the events of `STARTS` and `STOPS` that come after the first `length` bytes of a file.

    They say when the run began, how often the run stopped and went on, and why. Lines that a power cut has garbled are left out.
    """
    if not events.exists():
        return ""
    with events.open("rb") as file:
        file.seek(length)
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    kept = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if line.endswith("\n") and json.loads(line)["event"] in (*STARTS, *STOPS):
                kept.append(line)
    return "".join(kept)
