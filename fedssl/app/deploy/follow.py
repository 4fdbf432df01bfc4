"""Follow a run of a deployment: read its record as it grows, and show it as a simulation is shown."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedssl.app.deploy.operator import COMPLETED, Operator
from fedssl.core.console import Console
from fedssl.core.errors import RunFailed
from fedssl.core.files import whole_lines
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.global_model import GlobalModel
from fedssl.record.lines import read_rounds, read_rows
from fedssl.record.resume import outcome_of
from fedssl.record.rows import AT_SERVER, ClientRow, Failure, Observer, RoundEnd, RoundRow
from fedssl.record.run_directory import STOPS
from fedssl.record.run_path import CLIENTS, EVENTS, ROUNDS, SUMMARY
from fedssl.record.snapshot import Snapshot
from fedssl.views.reports.writer import ReportWriter
from fedssl.views.screen.display import PlainDisplay, make_display

LOOK_SECONDS = 0.5
"""The record is read again after this many seconds."""

STARTS = ("began", "resumed")
"""The events with which a run begins or goes on."""

ASK_SECONDS = 15.0
"""The SuperLink is asked how the run is after this many seconds without a round; each question starts a process."""


@dataclass(frozen=True)
class Watch:
    """The part of a record that belongs to a run of Flower's: all that is recorded from some time on.

    Args:
        directory: The run directory, in which earlier runs of Flower's may have recorded rounds.
        since: Earlier events, by their time, are those of other runs; empty: the run records already.
    """

    directory: Path
    since: str = ""

    @classmethod
    def of_next(cls, directory: Path) -> "Watch":
        """Watch what is recorded from now on."""
        return cls(directory, datetime.now(UTC).isoformat(timespec="milliseconds"))

    def first_round(self) -> int | None:
        """Return the round after which the run goes on, 0 if it begins anew; None: it has recorded nothing yet."""
        last = self._last_event()
        return int(last.get("after_round", 0)) if last and last["event"] in STARTS else None

    def rounds(self) -> list[RoundRow]:
        """Return the rows of all recorded rounds."""
        try:
            return list(read_rounds(self.directory / ROUNDS))
        except FileNotFoundError:
            return []  # the run has not begun

    def reason(self) -> str:
        """Return the reason that the record gives for the run's end; empty if it gives none."""
        last = self._last_event()
        return str(last["reason"]) if last and last["event"] in STOPS else ""

    def has_ended(self) -> bool:
        """Return whether the record says that the run is over."""
        return (self.directory / SUMMARY).exists() or bool(self.reason())

    def _last_event(self) -> Mapping[str, Any] | None:
        """Return the last event that starts or stops the run; None if there is none yet."""
        try:
            lines = whole_lines(self.directory / EVENTS).splitlines()
        except FileNotFoundError:
            return None
        events = [json.loads(line) for line in lines]
        own = [e for e in events if e["event"] in (*STARTS, *STOPS) and e["time"] >= self.since]
        return own[-1] if own else None


def follow(
    experiment: Experiment,
    federation: Federation,
    operator: Operator,
    run_id: str,
    watch: Watch,
    *,
    plain: bool,
) -> str:
    """Show a run until it ends; return how it ended if it did not complete, else an empty text.

    Args:
        experiment: The experiment that runs.
        federation: The federation that the experiment describes.
        operator: The operator, which reaches the SuperLink.
        run_id: Flower's id of the run.
        watch: What of the record belongs to the run.
        plain: Show plain lines, no live screen.
    """
    console = Console()
    display: Observer = PlainDisplay(console) if plain else make_display(console)
    report = ReportWriter(watch.directory)
    for observer in (report, display):
        observer.began(experiment, federation)
    status, details, heard = "", "", 0.0
    shown: int | None = None
    while True:
        over = status.startswith("finished")
        if shown is None:
            shown = _show_start(watch, display)
        for end in () if shown is None else _new_rounds(watch, shown):
            display.round_ended(end)
            shown = end.row.round
            heard = time.monotonic()
        if over:
            break
        if watch.has_ended() or time.monotonic() - heard > ASK_SECONDS:
            with contextlib.suppress(RunFailed):  # the SuperLink may be restarting
                status, details = operator.run_status(run_id)
            heard = time.monotonic()
        time.sleep(LOOK_SECONDS)
    if status == COMPLETED:
        outcome = outcome_of(watch.directory)
        report.ended(outcome)
        display.ended(outcome)
        return ""
    reason, traceback, _ = (watch.reason() or details).partition(AT_SERVER)
    display.failed(reason)
    if traceback:
        reason += f" (the traceback is in {watch.directory / EVENTS})"
    return f"{status}: {reason}" if reason else status


def _show_start(watch: Watch, display: Observer) -> int | None:
    """Show the rounds after which a run goes on, and return their number; None: the run has recorded nothing yet."""
    first = watch.first_round()
    if first:
        rounds = tuple(watch.rounds()[:first])
        display.resumed(Snapshot(rounds, GlobalModel(), {}, seconds=0.0, clients=None))
    return first


def _new_rounds(watch: Watch, shown: int) -> Iterator[RoundEnd]:
    """Yield the recorded rounds after the first `shown`."""
    rows = watch.rounds()[shown:]
    if not rows:
        return
    # The clients' rows are complete, because they are written before the row of their round.
    clients = read_rows(watch.directory / CLIENTS, ClientRow)
    for row in rows:
        own = [client for client in clients if client.round == row.round]
        failed = [client for client in own if client.status == "failed"]
        failures = [Failure(row.round, client.client, client.reason) for client in failed]
        yield RoundEnd(row, own, failures, GlobalModel())
