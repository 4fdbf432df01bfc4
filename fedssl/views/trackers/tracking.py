"""The observer between a run and its tracker: it decides what is tracked and handles a tracker that fails."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedssl.core.files import write_atomically
from fedssl.core.rng import SERVER
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.lines import read_rows
from fedssl.record.rows import NumberRow, Observer, Outcome, RoundEnd, RoundRow, summarize
from fedssl.record.run_path import EXPERIMENT, NUMBERS, REPORT, ROUNDS, SUMMARY
from fedssl.record.snapshot import Snapshot
from fedssl.views.trackers.base import Facts, Status, TrackedRun, Tracker, tracker_of

TRACKER = "tracker.json"
"""File of a run directory that names the run's tracker and the run's id there."""

FILES = (EXPERIMENT, SUMMARY, ROUNDS, REPORT)
"""Files of a finished run's record that a tracker may keep; all of them are small."""

Incident = Callable[[int, str], None]
"""Function of (number of the last finished round, text) that records a problem which does not end the run."""


@contextlib.contextmanager
def tracking(experiment: Experiment, path: Path, incident: Incident) -> Iterator[list[Observer]]:
    """Track the run of the block; yields the observers to attach to the run, none if there is no tracker.

    The tracker is told of the end when the block is left. By then the record is complete, so a slow service delays
    no checkpoint.

    Args:
        experiment: The experiment that runs.
        path: The run directory.
        incident: Called once if the tracker fails.
    """
    tracker = tracker_of(experiment)
    if tracker is None:
        yield []
        return
    run = Tracking(tracker, path, incident)
    status: Status = "failed"
    try:
        yield [run]
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        run.close(status)


class Tracking(Observer):
    """Tell a tracker of a run; the first failure is reported, and the tracker is not called again.

    Args:
        tracker: The tracker to tell.
        path: The run directory.
        incident: Called with the first failure.
    """

    def __init__(self, tracker: Tracker, path: Path, incident: Incident) -> None:
        self._tracker = tracker
        self._path = path
        self._incident = incident
        self._run: TrackedRun | None = None
        self._round = 0
        self._summary: Mapping[str, float] = {}
        self._experiment: Experiment | None = None

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Open the run at the tracker: the earlier run if the run directory names one, else a new run."""
        self._experiment = experiment
        with self._guarded():
            self._run = self._tracker.open(Facts.of(experiment, self._path), self._known_id())
            named = {"tracker": self._tracker.to_dict(), "run": self._run.id}
            write_atomically(self._path / TRACKER, (json.dumps(named, indent=2) + "\n").encode())

    def resumed(self, snapshot: Snapshot) -> None:
        """Log the finished rounds, which a tracker that is new to the run does not have."""
        recorded: dict[int, list[NumberRow]] = {}
        for number in read_rows(self._path / NUMBERS, NumberRow):
            recorded.setdefault(number.round, []).append(number)
        for row in snapshot.rounds:
            self._log(row, recorded.get(row.round, []))

    def round_ended(self, end: RoundEnd) -> None:
        """Log the numbers of the round."""
        self._log(end.row, end.numbers)

    def ended(self, outcome: Outcome) -> None:
        """Keep the numbers of the run's summary until the run is closed."""
        assert self._experiment is not None
        summary = numbers_of(summarize(self._experiment, outcome))
        self._summary = {f"summary/{name}": value for name, value in summary.items()}

    def close(self, status: Status) -> None:
        """Tell the tracker how the run ended; a finished run also hands over its files."""
        kept = FILES if status == "finished" else ()
        files = [self._path / name for name in kept if (self._path / name).exists()]
        with self._guarded():
            if self._run is not None:
                self._run.end(status, self._summary, files)

    def _log(self, row: RoundRow, recorded: Sequence[NumberRow]) -> None:
        self._round = row.round
        values = numbers_of(dataclasses.asdict(row))
        del values["round"]
        values |= {f"number/{own.name}": own.value for own in recorded if own.client == SERVER}
        with self._guarded():
            if self._run is not None:
                self._run.log(row.round, values)

    def _known_id(self) -> str | None:
        """Return the run's id at this tracker; None if the run has not been tracked there."""
        file = self._path / TRACKER
        if not file.exists():
            return None
        named = json.loads(file.read_text(encoding="utf-8"))
        return str(named["run"]) if named["tracker"] == self._tracker.to_dict() else None

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Drop the tracker if the block fails; no failure of a tracker may end or change the run."""
        try:
            yield
        except Exception as error:
            self._run = None
            kind, reason = self._tracker.kind, f"{type(error).__name__}: {error}"
            self._incident(self._round, f"the run is no longer tracked by {kind}: {reason}")


def numbers_of(table: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a table by name, without texts and NaN."""
    known = {name: value for name, value in table.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in known.items() if not math.isnan(value)}
