"""The rows of a run's record, and what they sum up to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.global_model import GlobalModel
from fedssl.record.remarks import remark_on

if TYPE_CHECKING:
    from fedssl.record.snapshot import Snapshot

NAN = float("nan")
STATUSES = ("ok", "failed", "late", "dropped", "surplus")
"""What can become of a client in a round; the last three by virtual time."""


@dataclass(frozen=True)
class ClientRow:
    """One client in one round.

    Args:
        round, client: Which.
        status: ``"ok"`` or ``"failed"``; or what virtual time made of it: ``"late"``, ``"dropped"``, ``"surplus"``.
        reason: Last line of what went wrong; empty if nothing did.
        num_examples, num_labeled: What the client holds.
        num_confident: Its labeled images and those whose pseudo-label was accepted.
        num_steps: Local steps taken.
        loss: Mean training loss over them.
        pseudo_label_accuracy, pseudo_label_coverage: Against the labels the simulator hides, in [0, 1].
        seconds: Time of the local loop.
        bytes_up: Size of its reply's arrays.
        virtual_seconds: Its round on its own virtual device; NaN without ``[system]``.
        update_norm: L2 norm of what training changed of all weights it shares, before any clipping or noise; NaN
            where the client does not say: under ``[privacy]``, and with private data.
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
        round: From 1.
        phase: From 0.
        method: The phase's method.
        seconds: Time of the round and of its evaluation, which the next round may have begun during.
        server_accuracy, server_loss: Of the global model on the held-out images; NaN where not evaluated.
        ema_accuracy, ema_loss: Of its moving average.
        loss: Mean training loss over the cohort's steps.
        pseudo_label_accuracy: Share of accepted pseudo-labels that match the hidden truth.
        pseudo_label_coverage: Share of unlabeled images whose pseudo-label was accepted.
        bytes_up, bytes_down: Of all replies and all requests.
        clients_ok, clients_failed: Of the cohort.
        clients_lost: Of the cohort too: late, dropped out or beyond those wanted, in virtual time.
        virtual_seconds: The virtual clock at its end; NaN without ``[system]``.
        update_norm: L2 norm of the step that the clients' aggregate made the global model take, before any training
            at the server; NaN where there was none.
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
    virtual_seconds: float = NAN
    update_norm: float = NAN

    @property
    def evaluated(self) -> bool:
        """Whether the global model was evaluated in this round."""
        return not math.isnan(self.server_accuracy)


@dataclass(frozen=True)
class ClassRow:
    """Pseudo-labels of one class in one round, over the steps of its clients.

    Only unlabeled examples whose truth the simulator knows count; an example counts as often as it was shown.

    Args:
        round: Which.
        label: Number of the class, from 0.
        considered: Examples of this class that were shown.
        accepted: Weight of the pseudo-labels accepted among them.
        predicted: Weight of accepted pseudo-labels that name this class, whatever the truth.
        right: Weight of those whose truth it is.
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
        round: The round, from 1.
        client: The client whose mean over the steps of the round it is; -1: the server's, which is the mean over the round's
            clients, weighted by their steps, where clients recorded the number.
        name: The number's name. The strategy's begin with ``strategy.``, those of the server's training with ``server.``.
        value: The number.
    """

    round: int
    client: int
    name: str
    value: float


@dataclass(frozen=True)
class Failure:
    """A client that gave no usable reply, with all that is known why."""

    round: int
    client: int
    reason: str


@dataclass(frozen=True)
class RoundEnd:
    """A finished round.

    Args:
        row: What came of it.
        clients: Its cohort, by number.
        failures: Those of them that gave no usable reply.
        model: The global model after it.
        incidents: What went wrong and was mended, such as a worker that was lost and replaced.
        snapshot: What the run could go on from; None if it could not.
        classes: Its pseudo-labels by class; empty where there were none of known truth.
        numbers: Numbers that methods and the strategy recorded.
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
        rounds: Every round.
        seconds: From the first round to the end.
        most_frequent: Share of the most frequent class among the held-out images, in [0, 1]; NaN if unknown.
    """

    model: GlobalModel
    rounds: tuple[RoundRow, ...]
    seconds: float
    most_frequent: float = NAN


AT_SERVER = "\nthe traceback at the server:\n"
"""In the reason of a run that failed, this comes before the traceback of an error that nobody expected."""


class Observer:
    """Somebody who is told of a run as it goes; derive from it and override what matters to you."""

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Take note that a run begins."""

    def resumed(self, snapshot: "Snapshot") -> None:
        """Take note that a run that has begun goes on after some rounds."""

    def round_ended(self, end: RoundEnd) -> None:
        """Take note of a finished round and of the weights after it."""

    def ended(self, outcome: Outcome) -> None:
        """Take note that the run is over."""

    def failed(self, reason: str) -> None:
        """Take note that the run stopped before its end."""


def summarize(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    """Sum a run up; accuracies are means over the last evaluated rounds, never the best one.

    ``most_frequent_class`` is the share of that class among the held-out images; ``remark`` says in words that the run
    diverged, learned nothing or used no pseudo-label, and is empty otherwise.

    Args:
        experiment: What ran.
        outcome: What came of it.
    """
    last = [row for row in outcome.rounds if row.evaluated][-experiment.server.last_rounds :]
    rounds = outcome.rounds
    return {
        "name": experiment.name,
        "method": rounds[-1].method if rounds else experiment.method.kind,
        "seed": experiment.seed,
        "rounds": len(rounds),
        "last_rounds": len(last),
        "evaluated_on": experiment.evaluated_on,
        "server_accuracy": nan_mean(row.server_accuracy for row in last),
        "ema_accuracy": nan_mean(row.ema_accuracy for row in last),
        "pseudo_label_accuracy": nan_mean(row.pseudo_label_accuracy for row in last),
        "pseudo_label_coverage": nan_mean(row.pseudo_label_coverage for row in last),
        "clients_ok": sum(row.clients_ok for row in rounds),
        "clients_failed": sum(row.clients_failed for row in rounds),
        "clients_lost": sum(row.clients_lost for row in rounds),
        "bytes_up": sum(row.bytes_up for row in rounds),
        "bytes_down": sum(row.bytes_down for row in rounds),
        "seconds": outcome.seconds,
        "virtual_seconds": rounds[-1].virtual_seconds if rounds else NAN,
        "most_frequent_class": outcome.most_frequent,
        "remark": remark_on(rounds, outcome.most_frequent, experiment.evaluated_on),
    }


def nan_mean(values: Any) -> float:
    """Return the mean of the values that are not NaN; NaN of none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else NAN
