"""Displays of a sweep that goes on: a bar and one line per current run on a terminal, plain lines elsewhere."""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Group
from rich.panel import Panel
from rich.table import Table

from fedssl.app.sweep.messages import Began, Ended, Failed, Message, RoundDone, Said
from fedssl.app.sweep.points import Point, names_of_rows
from fedssl.core.console import Console
from fedssl.core.text import last_line
from fedssl.record.rows import NAN
from fedssl.views.screen.display import percent, progress_bar
from fedssl.views.screen.live_display import RIGHT
from fedssl.views.screen.live_panel import live_panel

log = logging.getLogger(__name__)

WIDE, MIDDLE = 72, 56
"""A terminal of at least this many columns shows whole heads, and the share of pseudo-labels that are right."""

MEMORY = 600.0
"""The time left is estimated from this much of the past (seconds), because a round may take a minute."""


class Display(Protocol):
    """An object that shows how a sweep goes; it is used as a context manager."""

    def __enter__(self) -> "Display":
        """Begin to show the sweep."""

    def __exit__(self, *details: object) -> None:
        """Stop showing the sweep, and remove everything that moves."""

    def show(self, point: Point, message: Message) -> None:
        """Show a message of the run of a point."""


def make_display(console: Console, todo: list[Point], done: int, *, plain: bool) -> Display:
    """Return a display that suits the console.

    Args:
        console: The console on which to show the sweep.
        todo: The points that will run.
        done: Number of points that are already finished.
        plain: Show plain lines on every console.
    """
    lines = Lines(console, len(todo) + done, done)
    chosen = lines if plain or not console.is_interactive else Screen(console, lines, todo)
    return Guarded(chosen)


class Guarded:
    """Forward all calls to a display until the display fails; then log the failure once and drop the display.

    Args:
        display: The display to protect the sweep from.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._failed = False

    def __enter__(self) -> "Guarded":
        self._try(self._display.__enter__)
        return self

    def __exit__(self, *details: object) -> None:
        with contextlib.suppress(Exception):
            self._display.__exit__(*details)

    def show(self, point: Point, message: Message) -> None:
        """Show a message of the run of a point."""
        if not self._failed:
            self._try(lambda: self._display.show(point, message))

    def _try(self, show: Callable[[], object]) -> None:
        try:
            show()
        except Exception as error:
            self._failed = True
            self.__exit__(None, None, None)
            log.warning("the sweep is no longer shown: %s: %s", type(error).__name__, error)


class Lines:
    """Print one line per finished run without control characters, for logs and pipes."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self.total = total
        self.done = done
        self.failed = 0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *details: object) -> None:
        pass

    def show(self, point: Point, message: Message) -> None:
        """Print the result or failure of a run, and its texts on the way."""
        match message:
            case Ended(line):
                self.done += 1
                self._line(f"{self._count()} {line}")
            case Failed(reason):
                self.failed += 1
                self._line(f"{self._count()} {point.name} failed: {last_line(reason)}")
            case Said(text):
                self._line(f"{point.name}: {text}")

    def _count(self) -> str:
        return f"[{self.done + self.failed}/{self.total}]"

    def _line(self, text: str) -> None:
        self._console.tell(text)


@dataclass
class _Job:
    """The numbers of a current run that its line shows."""

    rounds: int
    round: int = 0
    ema_accuracy: float = NAN
    right: float = NAN

    def advance(self, done: RoundDone) -> None:
        """Take over the numbers of a finished round; numbers that are NaN do not change."""
        self.round = done.round
        if not math.isnan(done.ema_accuracy):
            self.ema_accuracy = done.ema_accuracy
        if not math.isnan(done.pseudo_label_accuracy):
            self.right = done.pseudo_label_accuracy


class Screen:
    """Show a panel that is redrawn below the lines of finished runs.

    The panel's bar counts rounds, so that the time left is known before the first run is finished.
    """

    def __init__(self, console: Console, lines: Lines, todo: list[Point]) -> None:
        self._lines = lines
        self._jobs: dict[str, _Job] = {}
        self._progress = progress_bar(console, "rounds", MEMORY)
        self._rounds = {point.name: point.experiment.num_rounds for point in todo}
        names = (point.name for point in todo)
        self._shown = dict(zip(names, names_of_rows(todo), strict=True))
        self._bar = self._progress.add_task("rounds", total=sum(self._rounds.values()))
        self._console = console
        self._live = live_panel(console, self._screen, per_second=4)

    def __enter__(self) -> "Screen":
        self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._live.stop()

    def show(self, point: Point, message: Message) -> None:
        """Update the panel by a message of a run, and print the message."""
        match message:
            case Began(rounds, done):
                self._jobs[point.name] = _Job(rounds, done)
                self._subtract_rounds(done)
            case RoundDone():
                self._jobs[point.name].advance(message)
                self._progress.advance(self._bar)
            case Ended():
                del self._jobs[point.name]
            case Failed():
                job = self._jobs.pop(point.name, _Job(self._rounds[point.name]))
                self._subtract_rounds(job.rounds - job.round)
        self._lines.show(point, message)

    def _subtract_rounds(self, rounds: int) -> None:
        """Subtract rounds that will not run from the bar's total."""
        task = self._progress.tasks[0]
        self._progress.update(self._bar, total=(task.total or 0) - rounds)

    def _screen(self) -> Panel:
        lines = self._lines
        left = lines.total - lines.done - lines.failed
        title = f"{lines.done} of {lines.total} runs done, {lines.failed} failed, {left} left"
        return Panel(Group(self._progress, self._running()), title=title, border_style="blue")

    def _running(self) -> Table:
        """Return a row for each current run; names are broken between words, so that what differs is never cut."""
        width = self._console.width
        heads = ["round", "EMA", RIGHT[0] if width >= WIDE else RIGHT[-1]]
        table = Table(box=None, pad_edge=False, expand=True)
        table.add_column("running", ratio=1, overflow="fold")
        for head in heads if width >= MIDDLE else heads[:-1]:
            table.add_column(head, justify="right", no_wrap=True)
        for name, job in list(self._jobs.items()):  # a copy, because another thread draws
            cells = (f"{job.round}/{job.rounds}", percent(job.ema_accuracy), percent(job.right))
            table.add_row(self._shown[name], *cells[: len(table.columns) - 1])
        return table
