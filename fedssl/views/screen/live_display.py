"""The live screen of a run on a terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import ConsoleOptions, Group, JustifyMethod
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from fedssl.core.console import Console
from fedssl.core.text import last_line, one_line, printable
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.description import describe
from fedssl.record.judges import in_brackets, judge_in, judged_as_the_last, judges_of
from fedssl.record.rows import Failure, Observer, Outcome, RoundEnd, RoundRow
from fedssl.record.snapshot import Snapshot
from fedssl.views.screen.display import (
    closing_line,
    percent,
    progress_bar,
    sparkline,
    waiting_line,
)
from fedssl.views.screen.live_panel import BELOW, live_panel
from fedssl.views.unknown_truth import is_right_unknown

AROUND_ROWS = 3 + BELOW
"""Lines of the live screen around the latest rounds: two of the border, the heads of the columns, and those below the panel."""

AT_THE_SIDES = 4
"""Places of a line that the border of a panel and the space inside it take."""

BETWEEN = 2
"""Columns of the latest rounds are this many places apart."""


@dataclass(frozen=True)
class _Column:
    """A column of the latest rounds.

    Args:
        heads: Its head, then shorter ones for narrower terminals.
        rank: The columns with the lowest ranks are shown where there is no room for all.
        cell: Returns its text for a round.
    """

    heads: tuple[str, ...]
    rank: int
    cell: Callable[[RoundRow], str]


UNKNOWN = "unknown"
"""Stands for the share of right pseudo-labels where the unlabeled images have no true label."""

RIGHT = ("pseudo-labels right", "labels right", "right")
"""Heads of the column of pseudo-labels, for wide and for narrow terminals."""

COLUMNS = (
    _Column(("round",), 0, lambda row: str(row.round)),
    _Column(("method",), 6, lambda row: row.method),
    _Column(("accuracy",), 2, lambda row: _aligned(row.server_accuracy)),
    _Column(("EMA",), 1, lambda row: _aligned(row.ema_accuracy)),
    _Column(RIGHT, 3, lambda row: _right(row)),
    _Column(("used",), 4, lambda row: _aligned(row.pseudo_label_coverage)),
    _Column(("clients",), 5, lambda row: f"{row.clients_ok}/{row.cohort_size}"),
    _Column(("s",), 7, lambda row: f"{row.seconds:.2f}"),
)


def _aligned(share: float) -> str:
    """Return a percentage that is as wide as any other, so that columns stay where they are."""
    return f"{percent(share):>7}"


def _right(row: RoundRow) -> str:
    """Return the share of right pseudo-labels of a round."""
    right = row.pseudo_label_accuracy
    is_unknown = is_right_unknown(right, row.pseudo_label_coverage)
    return UNKNOWN if is_unknown else _aligned(right)


def _fitting(rows: Sequence[RoundRow], width: int) -> list[tuple[str, Callable[[RoundRow], str]]]:
    """Return the head and the cells of each column that has room in lines of some width, in the order of `COLUMNS`."""
    for level in range(len(RIGHT)):
        heads = [column.heads[min(level, len(column.heads) - 1)] for column in COLUMNS]
        widths = [
            max(map(len, (head, *map(column.cell, rows))))
            for head, column in zip(heads, COLUMNS, strict=True)
        ]
        if sum(widths) + BETWEEN * (len(widths) - 1) <= width:
            break
    room, kept = width + BETWEEN, set[int]()
    for number in sorted(range(len(COLUMNS)), key=lambda number: COLUMNS[number].rank):
        room -= widths[number] + BETWEEN
        if room >= 0:
            kept.add(number)
    return [(heads[number], COLUMNS[number].cell) for number in sorted(kept)]


class LiveDisplay(Observer):
    """Show a panel that is redrawn in place: progress, ETA, the course of accuracy, the latest rounds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._experiment: Experiment | None = None
        self._judges: tuple[str, ...] = ()
        self._rows: list[RoundRow] = []
        self._failures: list[Failure] = []
        self._incidents: list[str] = []
        self._wait = ""
        self._title = ""
        self._progress = progress_bar(console, "round")
        self._live = live_panel(console, self._screen, per_second=8)

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Show what runs."""
        self._experiment = experiment
        self._judges = judges_of(experiment, federation)
        self._title = describe(experiment, federation)
        self._task = self._progress.add_task("rounds", total=experiment.num_rounds)
        self._live.start()

    def resumed(self, snapshot: Snapshot) -> None:
        """Show the rounds that were finished before the run was resumed."""
        self._rows += snapshot.rounds
        self._progress.reset(self._task, completed=snapshot.round)

    def round_ended(self, end: RoundEnd) -> None:
        """Show the finished round."""
        self._rows.append(end.row)
        self._failures += end.failures
        self._incidents += (f"round {end.row.round}, incident: {text}" for text in end.incidents)
        self._wait = ""
        self._progress.advance(self._task)

    def waiting(self, what: str, until: datetime | None) -> None:
        """Show for which clients the server waits, until the round is over."""
        self._wait = waiting_line(what, until)

    def ended(self, outcome: Outcome) -> None:
        """Remove the panel; print the latest incidents and one line with the results."""
        assert self._experiment is not None
        self._live.stop()
        for incident in self._latest_incidents():
            self._console.tell(incident)
        self._console.tell(closing_line(self._experiment, outcome))

    def failed(self, reason: str) -> None:
        """Remove the panel."""
        self._live.stop()

    def _screen(self) -> Panel | None:
        """Return the panel as it is now: as many of the latest rounds as the terminal has room for. None before a run began."""
        if self._experiment is None:
            return None
        inside = self._console.width - AT_THE_SIDES
        title = Text(printable(self._title), style="dim")
        above: list[Text | Progress] = [title, self._progress, *self._course(inside)]
        options = self._console.options.update(width=inside)
        below = self._troubles(options)
        taken = sum(len(self._console.render_lines(part, options)) for part in (*above, *below))
        latest = self._latest(inside, max(1, self._console.height - taken - AROUND_ROWS))
        name = Text(self._experiment.name)
        return Panel(Group(*above, latest, *below), title=name, border_style="blue")

    def _course(self, inside: int) -> list[Text]:
        """Return the course of accuracy as wide as the screen, if a model has been evaluated."""
        evaluated = judged_as_the_last(self._rows, self._judges)
        if not evaluated:
            return []
        course = Text(f"EMA accuracy{in_brackets(judge_in(self._judges, evaluated[-1].phase))} ")
        now = f" {percent(evaluated[-1].ema_accuracy)}"
        width = max(10, inside - len(course) - len(now))
        course.append(sparkline([row.ema_accuracy for row in evaluated], width), "green")
        return [course.append(now)]

    def _latest_incidents(self) -> list[str]:
        return [incident.splitlines()[0] for incident in self._incidents[-2:]]

    def _troubles(self, options: ConsoleOptions) -> list[Text]:
        """Return the latest failures and incidents and what the run waits for, whole.

        The oldest are left out where all of them would take more than half of the terminal's height.
        """
        failures = [
            f"round {failure.round}, client {failure.client}: {last_line(failure.reason)}"
            for failure in self._failures[-3:]
        ]
        others = [*self._latest_incidents(), *([self._wait] if self._wait else [])]
        texts = [Text(one_line(text), style="red") for text in failures]
        texts += [Text(one_line(text), style="yellow") for text in others]
        room = self._console.height // 2
        for number, text in enumerate(reversed(texts)):
            room -= len(self._console.render_lines(text, options))
            if room < 0 and number:
                return texts[-number:]
        return texts

    def _latest(self, inside: int, most: int) -> Table:
        """Return the table of the latest rounds.

        Args:
            inside: Places of a line.
            most: At most this many rounds are shown.
        """
        rows = self._rows[-most:]
        columns = _fitting(rows, inside)
        table = Table(box=None, pad_edge=False, expand=True)
        for head, _ in columns:
            justify: JustifyMethod = "left" if head == "method" else "right"
            table.add_column(head, justify=justify, no_wrap=True)
        for row in rows:
            table.add_row(*(cell(row) for _, cell in columns))
        return table
