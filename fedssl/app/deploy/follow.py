"""Follow a run of a deployment: read its record as it grows, and show it as a simulation is shown."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from fedssl.app.deploy.operator import COMPLETED, Operator
from fedssl.core.console import Console
from fedssl.core.errors import RunFailed
from fedssl.core.files import whole_lines
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.global_model import GlobalModel
from fedssl.record.lines import read_rounds, read_rows
from fedssl.record.resume import outcome_of
from fedssl.record.rows import AT_SERVER, ClientRow, Failure, Observer, RoundEnd
from fedssl.record.run_path import CLIENTS, EVENTS, ROUNDS, SUMMARY
from fedssl.views.reports.writer import ReportWriter
from fedssl.views.screen.display import PlainDisplay, make_display

LOOK_SECONDS = 0.5
"""The record is read again after this many seconds."""

ASK_SECONDS = 15.0
"""The SuperLink is asked how the run is after this many seconds without a round; each question starts a process."""


def follow(
    experiment: Experiment,
    federation: Federation,
    operator: Operator,
    run_id: str,
    directory: Path,
    *,
    plain: bool,
) -> str:
    """Show a run until it ends; return how it ended if it did not complete, else an empty text.

    Args:
        experiment: The experiment that runs.
        federation: The federation that the experiment describes.
        operator: The operator, which reaches the SuperLink.
        run_id: Flower's id of the run.
        directory: The directory in which the server records the run.
        plain: Show plain lines, no live screen.
    """
    console = Console()
    display: Observer = PlainDisplay(console) if plain else make_display(console)
    report = ReportWriter(directory)
    for observer in (report, display):
        observer.began(experiment, federation)
    shown, status, details, heard = 0, "", "", 0.0
    while True:
        over = status.startswith("finished")
        for end in _read_new_rounds(directory, shown):
            display.round_ended(end)
            shown += 1
            heard = time.monotonic()
        if over:
            break
        has_ended = (directory / SUMMARY).exists() or bool(_read_failure(directory))
        if has_ended or time.monotonic() - heard > ASK_SECONDS:
            with contextlib.suppress(RunFailed):  # the SuperLink may be restarting
                status, details = operator.run_status(run_id)
            heard = time.monotonic()
        time.sleep(LOOK_SECONDS)
    if status == COMPLETED:
        outcome = outcome_of(directory)
        report.ended(outcome)
        display.ended(outcome)
        return ""
    reason, traceback, _ = (_read_failure(directory) or details).partition(AT_SERVER)
    display.failed(reason)
    if traceback:
        reason += f" (the traceback is in {directory / EVENTS})"
    return f"{status}: {reason}" if reason else status


def _read_new_rounds(directory: Path, shown: int) -> Iterator[RoundEnd]:
    """Yield the recorded rounds after the first `shown`."""
    try:
        rows = read_rounds(directory / ROUNDS)[shown:]
    except FileNotFoundError:
        return  # the run has not begun
    if not rows:
        return
    clients = read_rows(directory / CLIENTS, ClientRow)  # complete: written before their round
    for row in rows:
        own = [client for client in clients if client.round == row.round]
        failed = [client for client in own if client.status == "failed"]
        failures = [Failure(row.round, client.client, client.reason) for client in failed]
        yield RoundEnd(row, own, failures, GlobalModel())


def _read_failure(directory: Path) -> str:
    """Return the reason that the record gives for the run's end; empty if it gives none."""
    try:
        lines = whole_lines(directory / EVENTS).splitlines()
    except FileNotFoundError:
        return ""
    events = [json.loads(line) for line in lines]
    reasons = [str(event["reason"]) for event in events if event.get("event") == "failed"]
    return reasons[-1] if reasons else ""
