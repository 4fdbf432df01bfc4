"""Displays of a run while it goes on: plain lines, the choice of a display, and what all displays share."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedssl.core.console import Console
from fedssl.core.text import last_line
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.description import describe
from fedssl.record.judges import in_brackets, judge_in, judges_of
from fedssl.record.rows import Failure, Observer, Outcome, RoundEnd, summarize
from fedssl.views.unknown_truth import is_right_unknown

MOST_CLIENTS = 5
"""A line names at most this many clients that failed for one reason."""

BARS = "▁▂▃▄▅▆▇█"
"""Characters of a sparkline, from low to high values."""


WIDTH_FOR_ELAPSED = 60
"""A terminal of at least this many columns has room for the elapsed time beside the time left."""


def percent(share: float) -> str:
    """Return a share in [0, 1] as a percentage, or a dash if the share is NaN."""
    return "-" if math.isnan(share) else f"{share * 100:.1f} %"


def right_and_used(right: float, used: float) -> str:
    """Return how many pseudo-labels were right and used, in words; nothing for a method that gives none (NaN used).

    If none was used, none can be right, so only that is said.
    """
    if math.isnan(used):
        return ""
    if used == 0:
        return "none used"
    said = "unknown how many right" if is_right_unknown(right, used) else f"{percent(right)} right"
    return f"{said}, {percent(used)} used"


def closing_line(experiment: Experiment, outcome: Outcome) -> str:
    """Return one line with a run's results and what went wrong; the line counts the failures even if there are 0."""
    summary = summarize(experiment, outcome)
    failed, inactive = summary["clients_failed"], summary["clients_inactive"]
    return (
        f"{experiment.name} seed {experiment.seed}: "
        f"accuracy{in_brackets(summary['judged_by'])} {percent(summary['server_accuracy'])}, "
        f"EMA {percent(summary['ema_accuracy'])} "
        f"({summary['evaluated_on']}, mean of the last {summary['last_rounds']} evaluations), "
        f"{outcome.seconds:.1f} s, {failed} client failure{'' if failed == 1 else 's'}"
        f"{f', {inactive} inactive' if inactive else ''}"
        f"{_in_virtual_time(summary)}"
        f"{''.join(f'. {said}' for said in (summary['stopped'].rstrip('.'), summary['remark']) if said)}"
    )


def _in_virtual_time(summary: Mapping[str, Any]) -> str:
    """Return the virtual seconds of a run and the number of clients lost; empty for a run without virtual time."""
    if math.isnan(summary["virtual_seconds"]):
        return ""
    return f", {summary['clients_lost']} lost in {summary['virtual_seconds']:,.0f} virtual s"


def failure_lines(failures: Sequence[Failure]) -> Iterator[str]:
    """Yield one line for each reason for which clients failed in a round, with their numbers."""
    alike: dict[str, list[int]] = {}
    for failure in failures:
        alike.setdefault(last_line(failure.reason), []).append(failure.client)
    for reason, clients in alike.items():
        numbers = ", ".join(map(str, clients[:MOST_CLIENTS]))
        more = ", ..." if len(clients) > MOST_CLIENTS else ""
        who = (
            f"client {numbers}"
            if len(clients) == 1
            else f"{len(clients)} clients ({numbers}{more})"
        )
        yield f"{who} failed: {reason}"


def waiting_line(what: str, until: datetime | None) -> str:
    """Return one line on what a run waits for, with the time of day.

    Args:
        what: What it waits for, as a clause.
        until: It waits until then at most; None: without a limit.
    """
    limit = "" if until is None else f"; the run waits until {until.astimezone():%H:%M:%S} at most"
    return f"{datetime.now():%H:%M:%S} {what}{limit}"


def make_display(console: Console) -> Observer:
    """Return a display that suits the console: for a notebook, for a terminal whose cursor can be moved, or plain lines."""
    if console.is_jupyter:
        from fedssl.views.screen.notebook_display import NotebookDisplay

        return NotebookDisplay()
    if console.is_interactive:  # a terminal, and not a dumb one
        from fedssl.views.screen.live_display import LiveDisplay

        return LiveDisplay(console)
    return PlainDisplay(console)


class PlainDisplay(Observer):
    """Print one line per round without control characters, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._experiment: Experiment | None = None
        self._judges: tuple[str, ...] = ()

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Print what runs."""
        self._experiment = experiment
        self._judges = judges_of(experiment, federation)
        self._line(f"{experiment.name}: {describe(experiment, federation)}")

    def round_ended(self, end: RoundEnd) -> None:
        """Print the results of the round, the clients that failed, and the incidents."""
        assert self._experiment is not None
        row = end.row
        labels = right_and_used(row.pseudo_label_accuracy, row.pseudo_label_coverage)
        self._line(
            f"round {row.round}/{self._experiment.num_rounds} {row.method}: "
            f"accuracy{in_brackets(judge_in(self._judges, row.phase))} {percent(row.server_accuracy)}, "
            f"EMA {percent(row.ema_accuracy)}, "
            f"{f'pseudo-labels {labels}, ' if labels else ''}clients {row.clients_ok}/{len(end.clients)}, {row.seconds:.2f} s"
        )
        for line in failure_lines(end.failures):
            self._line(f"  {line}")
        for incident in end.incidents:
            self._line(f"  incident: {incident.splitlines()[0]}")

    def waiting(self, what: str, until: datetime | None) -> None:
        """Print for which clients the server waits."""
        self._line(f"  {waiting_line(what, until)}")

    def ended(self, outcome: Outcome) -> None:
        """Print the results of the run."""
        assert self._experiment is not None
        self._line(closing_line(self._experiment, outcome))

    def _line(self, text: str) -> None:
        self._console.tell(text)


def progress_bar(console: Console, what: str, memory: float = 30.0) -> Progress:
    """Return a progress bar as wide as the screen, with the elapsed time (if there is room) and the estimated time left.

    Args:
        console: The console to draw on.
        what: Name of the things that the bar counts, such as ``"round"``.
        memory: Length in seconds of the recent past from which the time left is estimated.
    """
    elapsed = [TimeElapsedColumn()] if console.width >= WIDTH_FOR_ELAPSED else []
    return Progress(
        TextColumn(what),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        *elapsed,
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=memory,
    )


def sparkline(values: Sequence[float], width: int) -> str:
    """Return shares in [0, 1] drawn as at most `width` bar characters; the last value is always drawn."""
    if len(values) > width:
        step = (len(values) - 1) / max(1, width - 1)
        values = [values[round(i * step)] for i in range(width)]
    return "".join(BARS[min(7, int(max(0.0, value) * 8))] for value in values)
