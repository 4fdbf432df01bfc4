"""The end of a round: evaluated and recorded, while the next round's clients train where that changes nothing."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fedssl.engine.client_grid import ClientGrid
from fedssl.metrics.accuracy import Evaluation
from fedssl.record.global_model import GlobalModel
from fedssl.record.rows import NAN, Observer, RoundEnd, RoundRow
from fedssl.record.snapshot import Snapshot
from fedssl.server.evaluation import are_shared, evaluate_models
from fedssl.server.phase import Phase
from fedssl.server.round_log import RoundLog, row_of


@dataclass(frozen=True)
class Finished:
    """A round as it stands when its weights are there; nothing in it is written to afterwards.

    Args:
        phase: Its phase.
        log: What was seen of it.
        model: The global model after it.
        virtual_seconds: The virtual clock after it; NaN without one.
        seconds: It took.
        is_evaluated: Whether its weights are to be evaluated.
        snapshot: What the run could go on from, but for the rows of its rounds; None if it could not.
    """

    phase: Phase
    log: RoundLog
    model: GlobalModel
    virtual_seconds: float = NAN
    seconds: float = NAN
    is_evaluated: bool = False
    snapshot: Snapshot | None = None


class RoundEnds:
    """Evaluate finished rounds and tell observers of them.

    Where the server evaluates by itself, a round waits until the next one's clients are at work. Where workers share
    the evaluation it is done at once: they can only do one thing at a time.

    Args:
        grid: Whose workers may help.
        observers: Told of every round.
        num_images: Held-out images.
    """

    def __init__(self, grid: ClientGrid, observers: Sequence[Observer], num_images: int) -> None:
        self.rows: list[RoundRow] = []
        """Of the rounds that are recorded."""
        self._workers = grid
        self._observers = observers
        self._num_images = num_images
        self._waiting: Finished | None = None

    def add(self, finished: Finished) -> None:
        """Take a finished round."""
        self.catch_up()
        self._waiting = finished
        if finished.is_evaluated and are_shared(self._workers, self._num_images):
            self.catch_up()

    def catch_up(self) -> None:
        """Evaluate and record the round that waits, if one does."""
        finished = self._waiting
        if finished is None:
            return
        began = time.perf_counter()
        model, ema = self._evaluate(finished) if finished.is_evaluated else (None, None)
        self._waiting = None  # until here it can be done again; from here on it is told, once
        seconds = finished.seconds + time.perf_counter() - began
        row = _row(finished, seconds, model, ema)
        self.rows.append(row)
        snapshot = finished.snapshot
        if snapshot is not None:
            snapshot = dataclasses.replace(snapshot, rounds=tuple(self.rows))
        self._tell(finished, row, snapshot)

    def rescue(self) -> None:
        """Record the round that waits once the run has ended early: without it there is no checkpoint of the last rounds.

        Not where workers share the evaluation, which they may be amid.
        """
        if not are_shared(self._workers, self._num_images):
            self.catch_up()

    def record_failed(self, finished: Finished) -> None:
        """Record a round after which the run ends: it is not evaluated, and no run goes on from it."""
        self.catch_up()
        self._tell(finished, _row(finished, finished.seconds, None, None), None)

    def _evaluate(self, finished: Finished) -> list[Evaluation]:
        """Return how the global model and its average do."""
        phase, models = finished.phase, [finished.model.arrays, finished.model.ema]
        timeout = phase.experiment.server.timeout
        return evaluate_models(phase.text, models, self._num_images, self._workers, timeout)

    def _tell(self, finished: Finished, row: RoundRow, snapshot: Snapshot | None) -> None:
        incidents, self._workers.incidents = self._workers.incidents, []
        log = finished.log
        incidents = [*incidents, *log.incidents]
        end = RoundEnd(
            row,
            log.clients,
            log.failures,
            finished.model,
            incidents,
            snapshot,
            log.class_rows(),
            log.number_rows(),
        )
        for observer in self._observers:
            observer.round_ended(end)


def _row(
    finished: Finished, seconds: float, model: Evaluation | None, ema: Evaluation | None
) -> RoundRow:
    phase = finished.phase
    method, now = phase.experiment.method.kind, finished.virtual_seconds
    return row_of(finished.log, phase.index, method, seconds, model, ema, now)
