"""Follow a run of a deployment: read its record as it grows, and show it as a simulation is shown."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedssl.app.deploy.operator import COMPLETED, Operator
from fedssl.core.console import Console
from fedssl.core.errors import FedsslError, RunFailed
from fedssl.core.files import whole_lines
from fedssl.core.text import without_tracebacks
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.global_model import GlobalModel
from fedssl.record.lines import read_rounds, read_rows
from fedssl.record.resume import outcome_of
from fedssl.record.rows import AT_SERVER, ClientRow, Failure, Observer, RoundEnd, RoundRow
from fedssl.record.run_directory import STARTS, STOPS
from fedssl.record.run_path import CLIENTS, EVENTS, ROUNDS, SUMMARY
from fedssl.record.snapshot import Snapshot
from fedssl.views.reports.writer import ReportWriter
from fedssl.views.screen.display import PlainDisplay, make_display

LOOK_SECONDS = 0.5
"""The record is read again after this many seconds."""

ASK_SECONDS = 15.0
"""The SuperLink is asked how the run is after this many seconds without a round; each question starts a process."""

CHECK_SECONDS = 5.0
"""After this many seconds, it is checked again whether the deployment still keeps its SuperLink running."""

SILENT_SECONDS = 300.0
"""A run is not followed any longer if its SuperLink has answered no question for this many seconds."""

GONE = "gone"
"""The SuperLink of a run was ended before it said how the run ended."""

SILENT = "silent"
"""The SuperLink of a run is kept running, but answers nothing."""


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

    def is_complete(self) -> bool:
        """Return whether the record says that the run has had all its rounds."""
        return (self.directory / SUMMARY).exists()

    def has_ended(self) -> bool:
        """Return whether the record says that the run is over."""
        return self.is_complete() or bool(self.reason())

    def waits(self) -> list[tuple[str, datetime | None]]:
        """Return for which clients the run has waited, and until when at most, in the order of the record."""
        found = [event for event in self._events() if event["event"] == "waiting"]
        return [(str(e["what"]), e["until"] and datetime.fromisoformat(e["until"])) for e in found]

    def incidents(self, round: int) -> list[str]:
        """Return what went wrong in a round without ending the run."""
        found = [event for event in self._events() if event["event"] == "incident"]
        return [str(event["what"]) for event in found if event["round"] == round]

    def _last_event(self) -> Mapping[str, Any] | None:
        """Return the last event that starts or stops the run; None if there is none yet."""
        own = [event for event in self._events() if event["event"] in (*STARTS, *STOPS)]
        return own[-1] if own else None

    def _events(self) -> Sequence[Mapping[str, Any]]:
        try:
            lines = whole_lines(self.directory / EVENTS).splitlines()
        except FileNotFoundError:
            return []
        return [event for line in lines if (event := json.loads(line))["time"] >= self.since]


def follow(
    experiment: Experiment,
    federation: Federation,
    operator: Operator,
    run_id: str,
    watch: Watch,
    is_served: Callable[[], bool],
    *,
    plain: bool,
) -> str:
    """Show a run until it ends; return how it ended if it did not complete, `GONE` or `SILENT`, else an empty text.

    The SuperLink may be away for a while and start again. If the deployment does not keep it running any more, or if it
    answers nothing for `SILENT_SECONDS`, nobody waits for it: then only the record says how the run ended.

    Args:
        experiment: The experiment that runs.
        federation: The federation that the experiment describes.
        operator: The operator, which reaches the SuperLink.
        run_id: Flower's id of the run.
        watch: What of the record belongs to the run.
        is_served: Returns whether the deployment keeps its SuperLink running.
        plain: Show plain lines, no live screen.
    """
    console = Console()
    display: Observer = PlainDisplay(console) if plain else make_display(console)
    report = ReportWriter(watch.directory)
    for observer in (report, display):
        observer.began(experiment, federation)
    question = _Question(operator, run_id, watch, is_served)
    shown: int | None = None
    waits = 0
    while True:
        # The answer is older than the look at the record, so nothing of an ended run is missed.
        over = question.is_over
        if shown is None:
            shown = _show_start(watch, display)
        for end in () if shown is None else _new_rounds(watch, shown):
            display.round_ended(end)
            shown = end.row.round
            question.postpone()
        for what, until in (found := watch.waits())[waits:]:
            if until is None or until > datetime.now(UTC):
                display.waiting(what, until)
        waits = len(found)
        if over:
            break
        if problem := question.ask(has_begun=shown is not None):
            display.waiting(*problem)
        time.sleep(LOOK_SECONDS)
    status, details = question.status, question.details
    if status == COMPLETED:
        outcome = outcome_of(watch.directory)
        report.ended(outcome)
        display.ended(outcome)
        return ""
    whole = watch.reason() or details
    reason = without_tracebacks(whole.partition(AT_SERVER)[0])
    display.failed(reason)
    if status in (GONE, SILENT):
        return status
    if reason != whole:
        reason += f" (the traceback is in {watch.directory / EVENTS})"
    return f"{status}: {reason}" if reason else status


class _Question:
    """The question how a run is, which is asked as rarely as can be.

    Args:
        operator: The operator, which reaches the SuperLink.
        run_id: Flower's id of the run.
        watch: What of the record belongs to the run.
        is_served: Returns whether the deployment keeps its SuperLink running.
    """

    def __init__(
        self, operator: Operator, run_id: str, watch: Watch, is_served: Callable[[], bool]
    ) -> None:
        self.status, self.details = "", ""
        self._operator = operator
        self._run_id = run_id
        self._watch = watch
        self._is_served = is_served
        self._asked = self._answered = self._checked = time.monotonic()
        self._told = ""

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, or nobody can say any more how it is."""
        return self.status.startswith("finished") or self.status in (GONE, SILENT)

    def postpone(self) -> None:
        """Take a recorded round for an answer: the run is well."""
        self._asked = self._answered = time.monotonic()

    def ask(self, *, has_begun: bool) -> tuple[str, datetime | None] | None:
        """Ask how the run is if it is time to; return what there is to wait for, and until when, if that is news.

        Args:
            has_begun: Whether the run records already.
        """
        now = time.monotonic()
        if now - self._checked > CHECK_SECONDS and self._is_gone():
            return None
        if not self._watch.has_ended() and now - self._asked < ASK_SECONDS:
            return None
        self._asked = now
        try:
            self.status, self.details = self._operator.run_status(self._run_id)
        except RunFailed:  # the SuperLink may be restarting
            if self._is_gone():
                return None
            left = SILENT_SECONDS + self._answered - now
            if left < 0:
                self._give_up(SILENT)
            until = datetime.now(UTC) + timedelta(seconds=left)
            return self._news("the deployment's server does not answer", until)
        self._answered = time.monotonic()
        if has_begun or self.is_over:
            self._told = ""
            return None
        return self._news(f"the run records nothing yet; Flower calls it {self.status!r}", None)

    def _is_gone(self) -> bool:
        """Check whether the SuperLink was ended; if so, the record alone says how the run ended."""
        self._checked = time.monotonic()
        # A container engine that fails now may answer the next time.
        with contextlib.suppress(FedsslError):
            if not self._is_served():
                self._give_up(GONE)
        return self.status in (COMPLETED, GONE)

    def _give_up(self, status: str) -> None:
        self.status = COMPLETED if self._watch.is_complete() else status

    def _news(self, what: str, until: datetime | None) -> tuple[str, datetime | None] | None:
        """Return what there is to wait for, unless that was told last."""
        is_told, self._told = self._told == what, what
        return None if is_told else (what, until)


def _show_start(watch: Watch, display: Observer) -> int | None:
    """Show the rounds after which a run goes on, and return their number; None: the run has recorded nothing yet."""
    first = watch.first_round()
    if first:
        rounds = tuple(watch.rounds()[:first])
        display.resumed(Snapshot(rounds, GlobalModel(), {}, seconds=0.0, clients=None))
        display.waiting(f"the run goes on after round {first}", None)
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
        yield RoundEnd(row, own, failures, GlobalModel(), watch.incidents(row.round))
