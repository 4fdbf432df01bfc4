"""A wrapper that keeps a failing display from harming the run."""

import contextlib
from collections.abc import Callable
from datetime import datetime

from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.rows import Observer, Outcome, RoundEnd
from fedssl.record.snapshot import Snapshot


class GuardedDisplay(Observer):
    """Forward all calls to a display until the display fails; then report the failure once and drop the display.

    Args:
        display: The display to protect the run from.
        complain: Called once with a sentence about the failure.
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

    def waiting(self, what: str, until: datetime | None) -> None:
        """Show for which clients the server waits."""
        self._show(lambda display: display.waiting(what, until))

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
                broken.failed(str(error))  # removes the panel and shows the cursor again
            self._complain(
                f"the run is recorded, but no longer shown: {type(error).__name__}: {error}"
            )
