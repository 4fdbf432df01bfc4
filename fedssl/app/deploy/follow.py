"""A run of a deployment as it goes: its record is read as it grows, and shown as a simulation is."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from fedssl.app.deploy.operator import COMPLETED, Operator
from fedssl.core.console import Console
from fedssl.core.errors import RunFailed
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.global_model import GlobalModel
from fedssl.record.lines import read_rounds, read_rows, whole_lines
from fedssl.record.resume import outcome_of
from fedssl.record.rows import AT_SERVER, ClientRow, Failure, Observer, RoundEnd
from fedssl.record.run_path import CLIENTS, EVENTS, ROUNDS, SUMMARY
from fedssl.views.reports.writer import ReportWriter
from fedssl.views.screen.display import PlainDisplay, make_display

LOOK_SECONDS = 0.5
"""Between looks at the record."""

ASK_SECONDS = 5.0
"""Between questions to the SuperLink, each of which starts a process."""


def follow(
    experiment: Experiment,
    federation: Federation,
    operator: Operator,
    run_id: str,
    directory: Path,
    *,
    plain: bool,
) -> str:
    """Show a run until it ends; return how it ended if that is not as it should, else an empty text.

    Args:
        experiment: What runs.
        federation: What it runs on.
        operator: Reaches the SuperLink.
        run_id: Flower's.
        directory: Where the server records it.
        plain: Plain lines, no live screen.
    """
    console = Console()
    display: Observer = PlainDisplay(console) if plain else make_display(console)
    report = ReportWriter(directory)
    for observer in (report, display):
        observer.began(experiment, federation)
    shown, status, details, asked = 0, "", "", 0.0
    while True:
        over = status.startswith("finished")
        for end in _rounds(directory, shown):
            display.round_ended(end)
            shown += 1
        if over:
            break
        if time.monotonic() - asked > ASK_SECONDS or (directory / SUMMARY).exists():
            with contextlib.suppress(RunFailed):  # the SuperLink may be coming back
                status, details = operator.run_status(run_id)
            asked = time.monotonic()
        time.sleep(LOOK_SECONDS)
    if status == COMPLETED:
        outcome = outcome_of(directory)
        report.ended(outcome)
        display.ended(outcome)
        return ""
    reason, traceback, _ = (_reason(directory) or details).partition(AT_SERVER)
    display.failed(reason)
    if traceback:
        reason += f" (the traceback is in {directory / EVENTS})"
    return f"{status}: {reason}" if reason else status


def _rounds(directory: Path, shown: int) -> Iterator[RoundEnd]:
    """Yield the rounds that are recorded beyond those that were shown."""
    try:
        rows = read_rounds(directory / ROUNDS)[shown:]
    except FileNotFoundError:
        return  # it has not begun
    if not rows:
        return
    clients = read_rows(directory / CLIENTS, ClientRow)  # written before their round
    for row in rows:
        own = [client for client in clients if client.round == row.round]
        failed = [client for client in own if client.status == "failed"]
        failures = [Failure(row.round, client.client, client.reason) for client in failed]
        yield RoundEnd(row, own, failures, GlobalModel())


def _reason(directory: Path) -> str:
    """Return why a run stopped, as its record says; empty if it does not."""
    try:
        lines = whole_lines(directory / EVENTS).splitlines()
    except FileNotFoundError:
        return ""
    events = [json.loads(line) for line in lines]
    reasons = [str(event["reason"]) for event in events if event.get("event") == "failed"]
    return reasons[-1] if reasons else ""
