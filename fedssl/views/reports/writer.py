"""Writes the report of a run while it goes: at its end and, on request, every so many rounds."""

import logging
from collections.abc import Mapping
from pathlib import Path

from fedssl.core.arrays import NamedArrays
from fedssl.core.extras import install_command, is_installed
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.rows import Observer, Outcome, RoundEnd
from fedssl.views.closer_look import look_closely, write_evaluation
from fedssl.views.reports.run_report import write_report
from fedssl.views.run import Run

log = logging.getLogger(__name__)


class ReportWriter(Observer):
    """Write report.html when the experiment's section ``[record]`` asks for it.

    The writer reads the record, so it must be told of everything after the record. A report that cannot be written is
    logged as a warning, and the run goes on.

    Args:
        path: The run directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._experiment: Experiment | None = None
        self._federation: Federation | None = None

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Keep the experiment and its federation if a report is wanted and can be drawn."""
        if not experiment.record.report:
            return
        if not is_installed("vl_convert"):
            log.warning("there will be no report.html without vl-convert: %s", install_command())
            return
        self._experiment, self._federation = experiment, federation

    def round_ended(self, end: RoundEnd) -> None:
        """Write the report if one is due."""
        if self._experiment is None:
            return
        every, number = self._experiment.record.report_every, end.row.round
        if every and number % every == 0 and number < self._experiment.num_rounds:
            self._write({"ema": end.model.ema, "model": end.model.arrays}, number)

    def ended(self, outcome: Outcome) -> None:
        """Write the report of the finished run."""
        if self._experiment is not None:
            self._write(
                {"ema": outcome.model.ema, "model": outcome.model.arrays}, len(outcome.rounds)
            )

    def _write(self, models: Mapping[str, NamedArrays], number: int) -> None:
        assert self._experiment is not None
        assert self._federation is not None
        try:
            evaluation = look_closely(self._experiment, self._federation, models, number)
            write_evaluation(self._path, evaluation)
            write_report(Run(self._path), evaluation)
        except Exception as error:
            log.warning(
                "report.html was not written after round %d: %s: %s",
                number,
                type(error).__name__,
                error,
                exc_info=log.isEnabledFor(logging.DEBUG),
            )
