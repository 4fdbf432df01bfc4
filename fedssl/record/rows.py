"""The rows of a run's record, the events that observers see, and the summary of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.privacy import Account
from fedssl.metrics.balanced import MEASURES, Balanced
from fedssl.record.global_model import GlobalModel
from fedssl.record.judges import UNTRAINED, judge_in, judged_as_the_last
from fedssl.record.remarks import remark_on
from fedssl.record.room import room_of

if TYPE_CHECKING:
    from fedssl.record.snapshot import Snapshot

NAN = float("nan")
PHASE = "phase"
"""Source of the numbers that are recorded once, when a phase begins; views draw no course of them."""
STATUSES = ("ok", "failed", "inactive", "late", "dropped", "surplus")
"""The status that a client can have in a round; the last three occur in virtual time only."""


@dataclass(frozen=True)
class ClientRow:
    """One client in one round.

    Args:
        round: Number of the round, from 1.
        client: Number of the client.
        status: ``"ok"``, ``"failed"`` or ``"inactive"``; in virtual time also ``"late"``, ``"dropped"`` or ``"surplus"``. An
            inactive client had nothing to train on: it sends no weights, is no failure and does not count in the mean.
        reason: Last line of what went wrong; empty if nothing did.
        num_examples, num_labeled: Number of all and of the labeled training images of the client.
        num_confident: Number of labeled images and of images whose pseudo-label was accepted.
        num_steps: Number of local steps.
        loss: Mean training loss over these steps.
        pseudo_label_accuracy: Share of accepted pseudo-labels that match the hidden labels, in [0, 1].
        pseudo_label_coverage: Share of unlabeled images whose pseudo-label was accepted, in [0, 1].
        seconds: Time of the local training (seconds).
        bytes_up: Size of the reply's arrays (bytes).
        virtual_seconds: Duration of the round on the client's virtual device (seconds); NaN without ``[system]``.
        update_norm: L2 norm of the change that training made to all shared weights, before any clipping or noise; NaN
            if the client does not send it: with ``[privacy]``, and with private data.
    """

    round: int
    client: int
    status: str
    reason: str = ""
    num_examples: int = 0
    num_labeled: int = 0
    num_confident: float = 0.0
    num_steps: int = 0
    loss: float = NAN
    pseudo_label_accuracy: float = NAN
    pseudo_label_coverage: float = NAN
    seconds: float = NAN
    bytes_up: int = 0
    virtual_seconds: float = NAN
    update_norm: float = NAN


@dataclass(frozen=True)
class RoundRow:
    """One round.

    Args:
        round: Number of the round, from 1.
        phase: Number of its phase, from 0.
        method: Name of the phase's method.
        seconds: Time of the round and of its evaluation (seconds); the next round may begin during the evaluation.
        server_accuracy, server_loss: Accuracy, in [0, 1], and loss of the global model on the held-out images; NaN if
            the round was not evaluated.
        ema_accuracy, ema_loss: The same of the global model's moving average.
        loss: Mean training loss over the steps of the cohort.
        pseudo_label_accuracy: Share of accepted pseudo-labels that match the hidden labels, in [0, 1].
        pseudo_label_coverage: Share of unlabeled images whose pseudo-label was accepted, in [0, 1].
        bytes_up, bytes_down: Size of all replies and of all requests (bytes).
        clients_ok, clients_failed: Number of clients of the cohort that succeeded and that failed.
        clients_lost: Number of clients of the cohort that were late, dropped out or were surplus, in virtual time.
        clients_inactive: Number of clients of the cohort that had nothing to train on.
        virtual_seconds: Virtual clock at the end of the round (seconds); NaN without ``[system]``.
        update_norm: L2 norm of the step that the clients' aggregate made the global model take, before any training
            at the server; NaN if there was no such step.
        client_update_norm: Mean of the ``update_norm`` of the clients that succeeded; NaN if none sent it.
        num_labeled: Number of labeled images of the clients that succeeded; -1 in an older record.
        classes_unnamed: Numbers of the classes of which at least ten unlabeled images were shown, and which no accepted pseudo-label
            named, separated by spaces; empty if there are none, if the true classes are unknown, or if there are more than 128
            classes.
    """

    round: int
    phase: int
    method: str
    seconds: float
    server_accuracy: float
    server_loss: float
    ema_accuracy: float
    ema_loss: float
    loss: float
    pseudo_label_accuracy: float
    pseudo_label_coverage: float
    bytes_up: int
    bytes_down: int
    clients_ok: int
    clients_failed: int
    clients_lost: int = 0
    clients_inactive: int = 0
    virtual_seconds: float = NAN
    update_norm: float = NAN
    client_update_norm: float = NAN
    num_labeled: int = -1
    classes_unnamed: str = ""

    @property
    def evaluated(self) -> bool:
        """Whether the global model was evaluated in this round."""
        return not math.isnan(self.server_accuracy)

    @property
    def cohort_size(self) -> int:
        """Number of clients that were asked to train in this round."""
        return self.clients_ok + self.clients_failed + self.clients_lost + self.clients_inactive


@dataclass(frozen=True)
class ClassRow:
    """Pseudo-labels of one class in one round, over the steps of all clients.

    Only unlabeled examples whose true class the simulator knows count. An example counts as often as it was shown.

    Args:
        round: Number of the round, from 1.
        label: Number of the class, from 0.
        considered: Number of shown examples whose true class is this class.
        accepted: Weight of the accepted pseudo-labels of these examples.
        predicted: Weight of the accepted pseudo-labels that name this class, whatever the true class.
        right: Weight of the accepted pseudo-labels that name this class and are right.
    """

    round: int
    label: int
    considered: float
    accepted: float
    predicted: float
    right: float


@dataclass(frozen=True)
class NumberRow:
    """A number that a method, a strategy or the server's own training recorded in one round.

    Args:
        round: Number of the round, from 1.
        client: Number of the client, whose value is a mean over its steps of the round; -1: the server. If clients
            recorded the number, the server's value is their mean, weighted by their steps.
        name: Name of the number. It begins with ``strategy.`` if the strategy recorded it, and with ``server.`` if the
            server's training did. With ``phase.``, it was recorded when a phase began.
        value: The number.
    """

    round: int
    client: int
    name: str
    value: float


@dataclass(frozen=True)
class Failure:
    """A client that gave no usable reply, and the full reason."""

    round: int
    client: int
    reason: str


@dataclass(frozen=True)
class RoundEnd:
    """A finished round.

    Args:
        row: The row of the round.
        clients: The rows of the cohort, ordered by client number.
        failures: The clients of the cohort that gave no usable reply.
        model: The global model after the round.
        incidents: Problems that did not end the run, such as a worker that was lost and replaced, as sentences.
        snapshot: The state of the run, from which it can go on; None if it cannot go on from this round.
        classes: Pseudo-labels of the round by class; empty if no pseudo-label has a known true class.
        numbers: Numbers that methods, the strategy and the server's training recorded.
    """

    row: RoundRow
    clients: Sequence[ClientRow]
    failures: Sequence[Failure]
    model: GlobalModel
    incidents: Sequence[str] = ()
    snapshot: "Snapshot | None" = None
    classes: Sequence[ClassRow] = ()
    numbers: Sequence[NumberRow] = ()


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Args:
        model: The global model of the last round.
        rounds: The rows of all rounds.
        seconds: Time from the first round to the end (seconds).
        most_frequent: Share of the most frequent class among the held-out images, in [0, 1]; NaN if unknown.
        judges: How the model of each phase was judged; empty: by its classifier.
        class_names: Names of the classes; empty if they are unknown.
        stopped: Why the run ended before its last round, as a sentence; empty if it had all its rounds.
        balanced: What the final models are worth if every class counts the same: of the global model (``"server"``) and of
            its moving average (``"ema"``); empty if unknown.
        account: What the noise of the run promises; None if it has no noise.
    """

    model: GlobalModel
    rounds: tuple[RoundRow, ...]
    seconds: float
    most_frequent: float = NAN
    judges: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    stopped: str = ""
    balanced: Mapping[str, Balanced] = field(default_factory=dict)
    account: Account | None = None


AT_SERVER = "\nthe traceback at the server:\n"
"""The reason of a failed run has these words before the traceback of an unexpected error."""


class Observer:
    """The base class of everything that follows a run; override the methods for the events that you need.

    Example:
        >>> class LastRound(Observer):
        ...     def round_ended(self, end):
        ...         self.round = end.row.round
        >>> row = RoundRow(7, 0, "fixmatch", 1.0, 0.9, 0.1, 0.9, 0.1, 0.2, 1.0, 0.5, 10, 10, 5, 0)
        >>> observer = LastRound()
        >>> observer.round_ended(RoundEnd(row, [], [], GlobalModel()))
        >>> observer.round
        7
    """

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Take note that a run begins."""

    def resumed(self, snapshot: "Snapshot") -> None:
        """Take note that a run goes on from the snapshot of a finished round."""

    def waiting(self, what: str, until: datetime | None) -> None:
        """Take note that the server waits for clients of a deployment.

        Args:
            what: For whom it waits, as a clause.
            until: It waits until then at most; None: without a limit.
        """

    def round_ended(self, end: RoundEnd) -> None:
        """Take note of a finished round and of the global model after it."""

    def ended(self, outcome: Outcome) -> None:
        """Take note that the run is over."""

    def failed(self, reason: str) -> None:
        """Take note that the run stopped before its end."""

    def interrupted(self, reason: str) -> None:
        """Take note that a person or a signal stopped the run before its end; by default, as if it had failed."""
        self.failed(reason)


def summarize(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    """Return the summary of a run. Its accuracies are means over the last evaluated rounds, never those of the best.

    Only rounds with the judge of the last round count; ``judged_by`` names this judge. The measures that give every class
    the same weight, such as ``ema_macro_f1``, are those of the final models.

    ``most_frequent_class`` is the share of the most frequent class among the held-out images. ``remark`` says in words
    what went wrong, such as that the model diverged or that most pseudo-labels were wrong; otherwise it is empty.
    ``stopped`` says why the run ended before its last round.
    ``epsilon``, ``epsilon_known`` and ``delta`` are those of `fedssl.experiment.privacy.Account`, NaN without noise.

    Args:
        experiment: The experiment that ran.
        outcome: The outcome of its run.
    """
    rounds, account = outcome.rounds, outcome.account
    last = judged_as_the_last(rounds, outcome.judges)[-experiment.server.last_rounds :]
    judge = judge_in(outcome.judges, last[-1].phase if last else 0)
    return {
        "name": experiment.name,
        "method": rounds[-1].method if rounds else experiment.method.kind,
        "seed": experiment.seed,
        "rounds": len(rounds),
        "last_rounds": len(last),
        "evaluated_on": experiment.evaluated_on,
        "judged_by": judge,
        "server_accuracy": nan_mean(row.server_accuracy for row in last),
        "ema_accuracy": nan_mean(row.ema_accuracy for row in last),
        **_balanced(outcome),
        "pseudo_label_accuracy": nan_mean(row.pseudo_label_accuracy for row in last),
        "pseudo_label_coverage": nan_mean(row.pseudo_label_coverage for row in last),
        "clients_ok": sum(row.clients_ok for row in rounds),
        "clients_failed": sum(row.clients_failed for row in rounds),
        "clients_lost": sum(row.clients_lost for row in rounds),
        "clients_inactive": sum(row.clients_inactive for row in rounds),
        "bytes_up": sum(row.bytes_up for row in rounds),
        "bytes_down": sum(row.bytes_down for row in rounds),
        "seconds": outcome.seconds,
        "virtual_seconds": rounds[-1].virtual_seconds if rounds else NAN,
        "most_frequent_class": outcome.most_frequent,
        "stopped": outcome.stopped,
        "epsilon": NAN if account is None else account.epsilon,
        "epsilon_known": NAN if account is None else account.epsilon_known,
        "delta": NAN if account is None else account.delta,
        "noise_multiplier": 0.0 if account is None else account.noise_multiplier,
        "remark": remark_on(
            rounds,
            outcome.most_frequent,
            experiment.evaluated_on,
            is_trained=judge != UNTRAINED,
            is_whole=not outcome.stopped,
            room=room_of(experiment, is_whole=not outcome.stopped),
            class_names=outcome.class_names,
        ),
    }


def _balanced(outcome: Outcome) -> dict[str, float]:
    """Return the measures of both final models that give every class the same weight; NaN if unknown."""
    known = {model: found.by_name for model, found in outcome.balanced.items()}
    return {
        f"{model}_{name}": known.get(model, {}).get(name, NAN)
        for name in MEASURES
        for model in ("server", "ema")
    }


def nan_mean(values: Any) -> float:
    """Return the mean of the values that are not NaN; NaN if there are no such values."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else NAN
