"""A display that cannot harm the run it shows."""

import contextlib
from collections.abc import Callable

from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.rows import Observer, Outcome, RoundEnd
from fedssl.record.snapshot import Snapshot


class GuardedDisplay(Observer):
    """Pass on what a display is told, until it fails; then say so once, and the run goes on without it.

    Args:
        display: Shows the run.
        complain: Told of the failure.
    """

    def __init__(self, display: Observer, complain: Callable[[str], None]) -> None:
        self._display: Observer | None = display
        self._complain = complain

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Show that a run begins."""
        self._show(lambda display: display.began(experiment, federation))

    def resumed(self, snapshot: Snapshot) -> None:
        """Show that a run goes on."""
        self._show(lambda display: display.resumed(snapshot))

    def round_ended(self, end: RoundEnd) -> None:
        """Show a round."""
        self._show(lambda display: display.round_ended(end))

    def ended(self, outcome: Outcome) -> None:
        """Show that the run is over."""
        self._show(lambda display: display.ended(outcome))

    def failed(self, reason: str) -> None:
        """Show that the run stopped."""
        self._show(lambda display: display.failed(reason))

    def _show(self, tell: Callable[[Observer], None]) -> None:
        if self._display is None:
            return
        try:
            tell(self._display)
        except Exception as error:
            broken, self._display = self._display, None
            with contextlib.suppress(Exception):
                broken.failed(str(error))  # takes a panel away, and lets the cursor be seen again
            self._complain(
                f"the run is recorded, but no longer shown: {type(error).__name__}: {error}"
            )
