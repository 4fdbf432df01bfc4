"""Evaluate and record finished rounds, while the next round's clients train if that changes no result."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fedssl.engine.client_grid import ClientGrid
from fedssl.metrics.accuracy import Evaluation
from fedssl.record.global_model import GlobalModel
from fedssl.record.rows import NAN, Observer, RoundEnd, RoundRow
from fedssl.record.snapshot import Snapshot
from fedssl.server.evaluation import Judging, are_shared, evaluate_models
from fedssl.server.phase import Phase
from fedssl.server.round_log import RoundLog, row_of


@dataclass(frozen=True)
class Finished:
    """A round whose new weights are known; afterwards only its evaluation writes to its log.

    Args:
        phase: The round's phase.
        log: What the server saw of the round.
        model: The global model after the round.
        virtual_seconds: The virtual clock after the round; NaN without one.
        seconds: Seconds that the round took.
        is_evaluated: Whether the weights must be evaluated.
        snapshot: What the run can be resumed from, but for the rows of its rounds; None if it cannot be resumed.
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

    If the server evaluates alone, a finished round waits until the clients of the next round train. If workers share
    the evaluation, a round is evaluated at once, because a worker can only do one thing at a time.

    Args:
        grid: The grid whose workers may evaluate.
        observers: They are told of every round.
        num_images: Number of held-out images.
    """

    def __init__(self, grid: ClientGrid, observers: Sequence[Observer], num_images: int) -> None:
        self.rows: list[RoundRow] = []
        """The rows of the rounds that are recorded."""
        self._workers = grid
        self._observers = observers
        self._num_images = num_images
        self._waiting: Finished | None = None

    def add(self, finished: Finished) -> None:
        """Take a finished round; evaluate it at once if workers share the evaluation."""
        self.catch_up()
        self._waiting = finished
        if finished.is_evaluated and are_shared(self._workers, self._num_images):
            self.catch_up()

    def catch_up(self) -> None:
        """Evaluate and record the waiting round, if there is one."""
        finished = self._waiting
        if finished is None:
            return
        began = time.perf_counter()
        model, ema = self._evaluate(finished) if finished.is_evaluated else (None, None)
        # An error above leaves the round waiting, to be evaluated again. From here on, observers are told, only once.
        self._waiting = None
        if (
            model is not None
            and ema is not None
            and finished.phase.experiment.server.evaluator.learns
        ):
            finished.log.record("probe", accuracies_by_layer(model, ema))
        seconds = finished.seconds + time.perf_counter() - began
        row = _row(finished, seconds, model, ema)
        self.rows.append(row)
        snapshot = finished.snapshot
        if snapshot is not None:
            snapshot = dataclasses.replace(snapshot, rounds=tuple(self.rows))
        self._tell(finished, row, snapshot)

    def rescue(self) -> None:
        """Record the waiting round after the run has ended early, so that its checkpoint is written.

        If workers share the evaluation, nothing is recorded: the workers may be in the middle of it.
        """
        if not are_shared(self._workers, self._num_images):
            self.catch_up()

    def record_failed(self, finished: Finished) -> None:
        """Record a failed round, which ends the run: it is not evaluated, and no run can be resumed from it."""
        self.catch_up()
        self._tell(finished, _row(finished, finished.seconds, None, None), None)

    def _evaluate(self, finished: Finished) -> list[Evaluation]:
        """Return the evaluations of the global model and of its moving average."""
        phase, models = finished.phase, [finished.model.arrays, finished.model.ema]
        timeout = phase.experiment.server.timeout
        judging = Judging.of(phase.text, phase.experiment.server.evaluator)
        return evaluate_models(judging, models, self._num_images, self._workers, timeout)

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


def accuracies_by_layer(model: Evaluation, ema: Evaluation) -> dict[str, float]:
    """Return the accuracy of every layer that was judged: of the global model, and of its average as ``LAYER.ema``."""
    own = {name: right / model.num_examples for name, right in model.layers.items()}
    return own | {f"{name}.ema": right / ema.num_examples for name, right in ema.layers.items()}


def _row(
    finished: Finished, seconds: float, model: Evaluation | None, ema: Evaluation | None
) -> RoundRow:
    phase = finished.phase
    method, now = phase.experiment.method.kind, finished.virtual_seconds
    return row_of(finished.log, phase.index, method, seconds, model, ema, now)
