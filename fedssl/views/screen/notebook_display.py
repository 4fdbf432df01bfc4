"""The display of a run in a notebook: one output that is updated in place while the run goes on."""

import time
from html import escape
from typing import Any

from fedssl.core.text import last_line
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.description import describe
from fedssl.record.judges import in_brackets, judge_in, judged_as_the_last, judges_of
from fedssl.record.rows import Failure, Observer, Outcome, RoundEnd, RoundRow
from fedssl.record.snapshot import Snapshot
from fedssl.views.screen.display import closing_line, percent, right_and_used, sparkline

SECONDS_BETWEEN = 0.25
"""At least this many seconds pass between two updates, since each update is a message to the browser."""

COURSE_WIDTH = 40
"""The course of accuracy is drawn with at most this many bars."""


class NotebookDisplay(Observer):
    """Show a few lines and a progress bar, and the results once the run is over."""

    def __init__(self) -> None:
        self._experiment: Experiment | None = None
        self._judges: tuple[str, ...] = ()
        self._title = ""
        self._rows: list[RoundRow] = []
        self._failures: list[Failure] = []
        self._handle: Any = None
        self._updated = 0.0

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Show what runs."""
        from IPython.display import display

        self._experiment = experiment
        self._judges = judges_of(experiment, federation)
        self._title = describe(experiment, federation)
        shown = _bundle([self._title])
        self._handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def resumed(self, snapshot: Snapshot) -> None:
        """Show the rounds that were finished before the run was resumed."""
        self._rows += snapshot.rounds
        self._update(self._lines())

    def round_ended(self, end: RoundEnd) -> None:
        """Show the finished round, unless the last update is too recent."""
        self._rows.append(end.row)
        self._failures += end.failures
        if time.monotonic() - self._updated >= SECONDS_BETWEEN:
            self._update(self._lines())

    def ended(self, outcome: Outcome) -> None:
        """Show what ran and its results."""
        assert self._experiment is not None
        self._update([self._title, *self._failed(), closing_line(self._experiment, outcome)])

    def failed(self, reason: str) -> None:
        """Show how far the run came and why it stopped."""
        if self._handle is not None:
            self._update([*self._lines(), f"stopped: {last_line(reason)}"])

    def _lines(self) -> list[str]:
        lines = [self._title]
        evaluated = judged_as_the_last(self._rows, self._judges)
        if evaluated:
            judge = in_brackets(judge_in(self._judges, evaluated[-1].phase))
            course = sparkline([row.ema_accuracy for row in evaluated], COURSE_WIDTH)
            lines.append(f"EMA accuracy{judge} {course} {percent(evaluated[-1].ema_accuracy)}")
        if self._rows:
            row = self._rows[-1]
            labels = right_and_used(row.pseudo_label_accuracy, row.pseudo_label_coverage)
            lines.append(
                f"{row.method}: {f'pseudo-labels {labels}; ' if labels else ''}{row.seconds:.2f} s a round"
            )
        return lines + self._failed()

    def _failed(self) -> list[str]:
        return [
            f"round {failure.round}, client {failure.client} failed: {last_line(failure.reason)}"
            for failure in self._failures[-3:]
        ]

    def _update(self, lines: list[str]) -> None:
        assert self._experiment is not None
        self._updated = time.monotonic()
        self._handle.update(_bundle(lines, len(self._rows), self._experiment.num_rounds), raw=True)


def _bundle(lines: list[str], done: int = 0, total: int = 1) -> dict[str, str]:
    """Return lines and a progress bar as notebook output: as HTML, and as plain text for notebooks without HTML."""
    bar = f'<progress value="{done}" max="{total}"></progress> round {done} of {total}<br>'
    shown = "<br>".join(map(escape, lines))
    return {
        "text/html": f'<div style="font-size: 90%">{bar if done else ""}{shown}</div>',
        "text/plain": "\n".join([*lines, f"round {done} of {total}"] if done else lines),
    }
