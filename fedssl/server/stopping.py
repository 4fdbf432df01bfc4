"""Why a run ends before its last round: its accuracy on validation images gains nothing more, or its time is over."""

import math
from collections.abc import Sequence

from fedssl.experiment.experiment import Experiment
from fedssl.record.rows import RoundRow


class Stopping:
    """Decide whether a run ends after a round, by `server.stop_when` of the round's phase.

    The rounds of a run alone say whether it gained, so a run that goes on from a checkpoint ends where it would have ended.

    Args:
        experiment: The experiment that runs.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self.reason = ""
        """Why the run ends before its last round; empty if it does not."""

    def needs_evaluations(self, phase: int) -> bool:
        """Return whether the last round of a phase must be evaluated before the next one begins.

        Args:
            phase: Number of the phase, from 0.
        """
        stop = self._experiment.plans[phase].server.stop_when
        is_last = phase == len(self._experiment.plans) - 1
        return stop is not None and stop.no_gain is not None and is_last

    def watch_accuracy(self, phase: int, rows: Sequence[RoundRow]) -> None:
        """End the run if the last phase gained nothing in `no_gain` evaluations of the moving average.

        Args:
            phase: Number of the phase, from 0.
            rows: The recorded rounds of the run.
        """
        stop = self._experiment.plans[phase].server.stop_when
        if not self.needs_evaluations(phase) or stop is None or stop.no_gain is None:
            return
        judged = [r for r in rows if r.phase == phase and not math.isnan(r.ema_accuracy)]
        best = max(judged, key=lambda row: row.ema_accuracy, default=None)  # the first of equals
        if best is None or len(judged) - 1 - judged.index(best) < stop.no_gain:
            return
        self._end(
            judged[-1].round,
            f"no gain in {stop.no_gain} evaluations on validation images; the best was "
            f"{100 * best.ema_accuracy:.1f} % after round {best.round}",
        )

    def watch_time(self, phase: int, round: int, seconds: float) -> None:
        """End the run if its time is over and rounds are left.

        Args:
            phase: Number of the phase, from 0.
            round: Round of the run that has just ended.
            seconds: Time since the run began, without the time in which it was stopped (seconds).
        """
        stop = self._experiment.plans[phase].server.stop_when
        if stop is None or stop.minutes is None or round >= self._experiment.num_rounds:
            return
        if seconds >= 60 * stop.minutes:
            self._end(round, f"the time of {stop.minutes:g} minutes was over")

    def _end(self, round: int, because: str) -> None:
        self.reason = f"Stopped after round {round} of {self._experiment.num_rounds} (server.stop_when): {because}."
