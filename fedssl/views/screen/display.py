"""Displays of a run while it goes on: a live screen in a terminal, plain lines outside of terminals and notebooks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fedssl.core.console import Console
from fedssl.core.text import one_line, printable
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.description import describe
from fedssl.record.judges import in_brackets, judge_in, judged_as_the_last, judges_of
from fedssl.record.rows import (
    Failure,
    Observer,
    Outcome,
    RoundEnd,
    RoundRow,
    summarize,
)
from fedssl.record.snapshot import Snapshot

BARS = "▁▂▃▄▅▆▇█"
"""Characters of a sparkline, from low to high values."""

ROWS_SHOWN = 6
"""The live screen shows at most this many of the latest rounds."""


def percent(share: float) -> str:
    """Return a share in [0, 1] as a percentage, or a dash if the share is NaN."""
    return "-" if math.isnan(share) else f"{share * 100:.1f} %"


def right_and_used(right: float, used: float) -> str:
    """Return how many pseudo-labels were right and used, in words; nothing for a method that gives none (NaN used)."""
    return "" if math.isnan(used) else f"{percent(right)} right, {percent(used)} used"


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


def make_display(console: Console) -> Observer:
    """Return a display that suits the console: for a notebook, for a terminal, or plain lines."""
    if console.is_jupyter:
        from fedssl.views.screen.notebook_display import NotebookDisplay

        return NotebookDisplay()
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


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
        for failure in end.failures:
            self._line(f"  client {failure.client} failed: {last_line(failure.reason)}")
        for incident in end.incidents:
            self._line(f"  mended: {incident.splitlines()[0]}")

    def ended(self, outcome: Outcome) -> None:
        """Print the results of the run."""
        assert self._experiment is not None
        self._line(closing_line(self._experiment, outcome))

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def progress_bar(console: Console, what: str, memory: float = 30.0) -> Progress:
    """Return a progress bar as wide as the screen, with the elapsed time and the estimated time left.

    Args:
        console: The console to draw on.
        what: Name of the things that the bar counts, such as ``"round"``.
        memory: Length in seconds of the recent past from which the time left is estimated.
    """
    return Progress(
        TextColumn(what),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=memory,
    )


class LiveDisplay(Observer):
    """Show a panel that is redrawn in place: progress, ETA, the course of accuracy, the latest rounds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._experiment: Experiment | None = None
        self._judges: tuple[str, ...] = ()
        self._rows: list[RoundRow] = []
        self._failures: list[Failure] = []
        self._incidents: list[str] = []
        self._title = ""
        self._progress = progress_bar(console, "round")
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Show what runs."""
        self._experiment = experiment
        self._judges = judges_of(experiment, federation)
        self._title = describe(experiment, federation)
        self._task = self._progress.add_task("rounds", total=experiment.num_rounds)
        self._live.update(self._screen())
        self._live.start()

    def resumed(self, snapshot: Snapshot) -> None:
        """Show the rounds that were finished before the run was resumed."""
        self._rows += snapshot.rounds
        self._progress.reset(self._task, completed=snapshot.round)
        self._live.update(self._screen())

    def round_ended(self, end: RoundEnd) -> None:
        """Show the finished round."""
        self._rows.append(end.row)
        self._failures += end.failures
        self._incidents += (f"round {end.row.round}, mended: {text}" for text in end.incidents)
        self._progress.advance(self._task)
        self._live.update(self._screen())

    def ended(self, outcome: Outcome) -> None:
        """Remove the panel and print one line with the results."""
        assert self._experiment is not None
        self._live.stop()
        self._console.print(
            closing_line(self._experiment, outcome),
            soft_wrap=True,
        )

    def failed(self, reason: str) -> None:
        """Remove the panel."""
        self._live.stop()

    def _screen(self) -> Panel:
        assert self._experiment is not None
        parts: list[Text | Table | Progress] = [
            Text(printable(self._title), style="dim"),
            self._progress,
        ]
        evaluated = judged_as_the_last(self._rows, self._judges)
        if evaluated:
            judge = judge_in(self._judges, evaluated[-1].phase)
            course = Text(f"EMA accuracy{in_brackets(judge)} ")
            width = max(10, min(60, self._console.width - 40))
            course.append(sparkline([row.ema_accuracy for row in evaluated], width), "green")
            course.append(f" {percent(evaluated[-1].ema_accuracy)}")
            parts.append(course)
        parts.append(self._latest())
        for failure in self._failures[-3:]:
            text = f"round {failure.round}, client {failure.client}: {last_line(failure.reason)}"
            parts.append(Text(one_line(text), style="red", overflow="ellipsis", no_wrap=True))
        for incident in self._incidents[-2:]:
            parts.append(
                Text(
                    one_line(incident.splitlines()[0]),
                    style="yellow",
                    overflow="ellipsis",
                    no_wrap=True,
                )
            )
        return Panel(Group(*parts), title=Text(self._experiment.name), border_style="blue")

    def _latest(self) -> Table:
        table = Table(box=None, pad_edge=False, expand=True)
        for name in (
            "round",
            "method",
            "accuracy",
            "EMA",
            "pseudo-labels right",
            "used",
            "clients",
        ):
            table.add_column(name, justify="left" if name == "method" else "right")
        table.add_column("s", justify="right")
        for row in self._rows[-ROWS_SHOWN:]:
            table.add_row(
                str(row.round),
                row.method,
                percent(row.server_accuracy),
                percent(row.ema_accuracy),
                percent(row.pseudo_label_accuracy),
                percent(row.pseudo_label_coverage),
                f"{row.clients_ok}/{row.cohort_size}",
                f"{row.seconds:.2f}",
            )
        return table


def sparkline(values: Sequence[float], width: int) -> str:
    """Return shares in [0, 1] drawn as at most `width` bar characters; the last value is always drawn."""
    if len(values) > width:
        step = (len(values) - 1) / max(1, width - 1)
        values = [values[round(i * step)] for i in range(width)]
    return "".join(BARS[min(7, int(max(0.0, value) * 8))] for value in values)


def last_line(reason: str) -> str:
    """Return the last line of a failure's reason; the last line of a traceback is the error."""
    lines = reason.strip().splitlines()
    return lines[-1] if lines else "no reason given"
