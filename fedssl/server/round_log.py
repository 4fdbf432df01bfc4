"""Record what the server sees of one round: replies, failures, bytes and numbers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from fedssl.core.numbers import check_names
from fedssl.core.rng import SERVER
from fedssl.core.text import last_line
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.exchange.reduction import NO_REPLY, Answer, CohortSums
from fedssl.exchange.replies import is_inactive
from fedssl.experiment.system.clock import Fate
from fedssl.metrics.accuracy import Evaluation
from fedssl.metrics.pseudo_labels import pseudo_label_accuracy, pseudo_label_coverage
from fedssl.record.rows import (
    NAN,
    ClassRow,
    ClientRow,
    Failure,
    NumberRow,
    RoundRow,
    nan_mean,
)

Fates = Mapping[int, Fate]


class Measured(NamedTuple):
    """What a reply that was not refused measured, beside its row.

    Args:
        row: The client's row.
        counts: Pseudo-labels that were considered, accepted, judged and right.
        numbers: Numbers that the method recorded, by name.
        classes: Counts of pseudo-labels by class, (4 C,); None if the client sent none.
    """

    row: ClientRow
    counts: Sequence[float]
    numbers: Mapping[str, float]
    classes: npt.NDArray[np.float64] | None


MOST_CLASSES = 128
"""With more classes, the row of a round does not say which ones no pseudo-label named."""

FEWEST_SHOWN = 10
"""Of a class with fewer shown unlabeled images, the row of a round does not say that no pseudo-label named it."""


class RoundLog:
    """Collect what the server sees of one round.

    Args:
        round: Round of the run, from 1.
        census: The clients and what each of them holds.
        fates: Outcome of the round in virtual time, by client that was asked; empty without virtual time.
        num_classes: Number of classes of the images.
    """

    def __init__(self, round: int, census: Census, fates: Fates, num_classes: int) -> None:
        self.round = round
        self.clients: list[ClientRow] = []
        self.failures: list[Failure] = []
        self.bytes_down = 0
        self.update_norm = NAN
        """L2 norm of the step that the clients' aggregate made the global model take; the server sets it."""
        self.incidents: list[str] = []
        """Descriptions of what went wrong in the round without ending the run."""
        self.census = census
        self._fates = fates
        self._num_classes = num_classes
        self._measured: list[Measured] = []
        self._server_numbers: dict[str, float] = {}

    @property
    def num_ok(self) -> int:
        """Number of replies that count."""
        return sum(row.status == "ok" for row in self.clients)

    @property
    def num_inactive(self) -> int:
        """Number of clients that sat the round out."""
        return sum(row.status == "inactive" for row in self.clients)

    @property
    def num_lost(self) -> int:
        """Number of clients that virtual time left out."""
        return len(self.clients) - self.num_ok - self.num_inactive - len(self.failures)

    @property
    def counted_clients(self) -> set[int]:
        """Numbers of the clients that answered all their requests of the round, and none of whose replies was refused."""
        answered = {row.client for row in self.clients if row.status in ("ok", "inactive")}
        return answered - {failure.client for failure in self.failures}

    def sent(self, messages: Sequence[Message], sizes: Sequence[int]) -> list[Message]:
        """Return the requests whose clients reply in virtual time, and note the other clients.

        Every client that is not absent is sent the weights, so its request counts as bytes down.

        Args:
            messages: The requests of the round.
            sizes: Bytes of each request's arrays that travel.
        """
        kept = []
        for message, size in zip(messages, sizes, strict=True):
            client = self.census.client_at[message.metadata.dst_node_id]
            if client in self.census.absent:
                self._fail(client, self.census.absent[client])
                continue
            self.bytes_down += size
            fate = self._fates.get(client)
            if fate is None or fate.status == "ok":
                kept.append(message)
                continue
            row = ClientRow(
                round=self.round,
                client=client,
                status=fate.status,
                num_examples=int(self.census.num_examples[client]),
                num_labeled=int(self.census.num_labeled[client]),
                virtual_seconds=fate.seconds,
            )
            self.clients.append(row)
        return kept

    def watch(
        self,
        messages: Sequence[Message],
        replies: Iterable[Message],
        sums: CohortSums,
        at: Sequence[int] | None = None,
    ) -> Iterator[Message]:
        """Yield the replies, with an error in place of each refused reply, and note them all.

        Records that are summed move from the replies into `sums`, whose places of these requests are filled once the
        iterator has ended. The reply of a client that sat the round out is not yielded.

        Args:
            messages: Requests, one for each client.
            replies: Replies to them, in any order.
            sums: Sums with one place for each request.
            at: The place of each request in `sums`; by default their order.
        """
        order = range(len(messages)) if at is None else at
        nodes = [message.metadata.dst_node_id for message in messages]
        places = dict(zip(nodes, order, strict=True))
        for reply in replies:
            place = places.pop(reply.metadata.src_node_id, None)
            if place is None:
                continue
            answer = sums.add(place, reply, self.census.holding(reply.metadata.src_node_id))
            self.note(answer)
            if answer.metrics is not None and is_inactive(answer.metrics):
                continue
            if answer.metrics is None:
                # The reason is the recorded one, because Flower's strategies write it into the log.
                yield protocol.refuse_reply(reply, self.failures[-1].reason)
            else:
                yield protocol.without_records(reply, sums.reduction.weigh)
        for node, place in places.items():
            self.note(sums.leave_out(place, node, NO_REPLY))

    def note(self, answer: Answer) -> None:
        """Note the answer to a client's request, whether the client succeeded or failed."""
        client = self.census.client_at[answer.node]
        metrics = answer.metrics
        if metrics is None:
            self._fail(client, answer.reason)
            return
        counts = [metrics.get(count, 0.0) for count in protocol.PSEUDO_COUNTS]
        considered, accepted, judged, right = counts
        row = ClientRow(
            round=self.round,
            client=client,
            status="inactive" if is_inactive(metrics) else "ok",
            num_examples=int(metrics.get(protocol.NUM_EXAMPLES, 0)),
            num_labeled=int(metrics.get(protocol.NUM_LABELED, 0)),
            num_confident=metrics.get(protocol.NUM_CONFIDENT, 0.0),
            num_steps=int(metrics.get(protocol.NUM_STEPS, 0)),
            loss=metrics.get(protocol.LOSS, NAN),
            pseudo_label_accuracy=pseudo_label_accuracy(judged, right),
            pseudo_label_coverage=pseudo_label_coverage(considered, accepted),
            seconds=metrics.get(protocol.SECONDS, NAN),
            bytes_up=answer.num_bytes,
            virtual_seconds=self._virtual_seconds(client),
            update_norm=metrics.get(protocol.UPDATE_NORM, NAN),
        )
        numbers = self._numbers_of(client, metrics)
        classes = self._classes_of(client, answer.lists.get(protocol.BY_CLASS))
        self.clients.append(row)
        self._measured.append(Measured(row, counts, numbers, classes))

    def _numbers_of(self, client: int, metrics: Mapping[str, float]) -> Mapping[str, float]:
        own = {
            name.removeprefix(protocol.NUMBER): value
            for name, value in metrics.items()
            if name.startswith(protocol.NUMBER)
        }
        try:
            check_names(own)
        except ValueError as error:
            self.incidents.append(f"client {client}'s numbers are left out: {error}")
            return {}
        return own

    def _classes_of(
        self, client: int, counts: Sequence[float] | None
    ) -> npt.NDArray[np.float64] | None:
        if counts is None:
            return None
        if len(counts) == 4 * self._num_classes:
            return np.array(counts)
        self.incidents.append(
            f"client {client}'s counts by class are left out: there are {len(counts)} counts, not 4 times "
            f"{self._num_classes}"
        )
        return None

    def record(self, source: str, numbers: Mapping[str, float]) -> None:
        """Record numbers that the server measured, such as the strategy's, as ``SOURCE.NAME``; NaN is left out.

        Raises:
            ValueError: A number's name is not allowed in records.
        """
        check_names(numbers)
        known = {name: float(value) for name, value in numbers.items() if value == value}
        self._server_numbers |= {f"{source}.{name}": value for name, value in known.items()}

    def close(self) -> None:
        """Sort clients by number, so that sums over them do not depend on the order in which replies came."""
        self.clients.sort(key=lambda row: row.client)
        self.failures.sort(key=lambda failure: failure.client)
        self._measured.sort(key=lambda measured: measured.row.client)

    def tally(self) -> "Tally":
        """Return the sums over the replies of the round."""
        tally = Tally(bytes_down=self.bytes_down)
        for row, counts, _, _ in self._measured:
            tally.add(row.num_steps, row.loss, counts, row.bytes_up)
        return tally

    def class_rows(self) -> list[ClassRow]:
        """Return the sums over the round's replies, one row a class; no rows if no client counted an example."""
        counted = [measured.classes for measured in self._measured if measured.classes is not None]
        counts = np.sum(counted, axis=0).reshape(4, -1) if counted else np.zeros((4, 0))
        if not counts[0].any():
            return []
        return [ClassRow(self.round, label, *own) for label, own in enumerate(counts.T.tolist())]

    def classes_unnamed(self) -> str:
        """Return the numbers of the classes that no accepted pseudo-label named, as a `RoundRow` has them."""
        if self._num_classes > MOST_CLASSES:
            return ""
        unnamed = [
            str(row.label)
            for row in self.class_rows()
            if row.considered >= FEWEST_SHOWN and row.predicted == 0
        ]
        return " ".join(unnamed)

    def number_rows(self) -> list[NumberRow]:
        """Return the numbers that the round's clients recorded, and after them the server's numbers.

        For a number that clients recorded, the server's row holds their mean, weighted by their local steps.
        """
        rows = []
        means: dict[str, tuple[float, float]] = {}
        for row, _, numbers, _ in self._measured:
            for name, value in numbers.items():
                rows.append(NumberRow(self.round, row.client, name, value))
                total, steps = means.get(name, (0.0, 0.0))
                means[name] = total + row.num_steps * value, steps + row.num_steps
        own = {name: total / steps for name, (total, steps) in means.items() if steps}
        own |= self._server_numbers
        return rows + [NumberRow(self.round, SERVER, name, value) for name, value in own.items()]

    def _virtual_seconds(self, client: int) -> float:
        return self._fates[client].seconds if client in self._fates else NAN

    def _fail(self, client: int, reason: str) -> None:
        """Note a client that gave no usable reply; the reason can be text from the client."""
        reason = protocol.shorten_reason(reason)
        seconds = self._virtual_seconds(client)
        row = ClientRow(self.round, client, "failed", last_line(reason), virtual_seconds=seconds)
        self.clients.append(row)
        self.failures.append(Failure(self.round, client, reason))


@dataclass
class Tally:
    """Sums over the replies of a round."""

    num_steps: int = 0
    loss_sum: float = 0.0
    considered: float = 0.0
    accepted: float = 0.0
    judged: float = 0.0
    right: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, steps: int, loss: float, counts: Sequence[float], size: int) -> None:
        """Add the numbers of one client.

        Args:
            steps: Local steps.
            loss: Mean training loss over these steps.
            counts: Pseudo-labels that were considered, accepted, judged and right.
            size: Bytes of the reply.
        """
        self.num_steps += steps
        self.loss_sum += steps * loss if steps else 0.0
        considered, accepted, judged, right = counts
        self.considered += considered
        self.accepted += accepted
        self.judged += judged
        self.right += right
        self.bytes_up += size


def row_of(
    log: RoundLog,
    phase: int,
    method: str,
    seconds: float,
    model: Evaluation | None,
    ema: Evaluation | None,
    virtual_seconds: float,
) -> RoundRow:
    """Return the row of a round, as it is recorded.

    Args:
        log: What the server saw of the round.
        phase: Number of the phase, from 0.
        method: Kind of the phase's method.
        seconds: Seconds that the round took.
        model, ema: Evaluations of the global model and of its moving average; None if they were not evaluated.
        virtual_seconds: The virtual clock after the round; NaN without one.
    """
    tally = log.tally()
    return RoundRow(
        round=log.round,
        phase=phase,
        method=method,
        seconds=seconds,
        server_accuracy=model.accuracy if model else NAN,
        server_loss=model.loss if model else NAN,
        ema_accuracy=ema.accuracy if ema else NAN,
        ema_loss=ema.loss if ema else NAN,
        loss=tally.loss_sum / tally.num_steps if tally.num_steps else NAN,
        pseudo_label_accuracy=pseudo_label_accuracy(tally.judged, tally.right),
        pseudo_label_coverage=pseudo_label_coverage(tally.considered, tally.accepted),
        bytes_up=tally.bytes_up,
        bytes_down=tally.bytes_down,
        clients_ok=log.num_ok,
        clients_failed=len(log.failures),
        clients_lost=log.num_lost,
        clients_inactive=log.num_inactive,
        virtual_seconds=virtual_seconds,
        update_norm=log.update_norm,
        client_update_norm=nan_mean(row.update_norm for row in log.clients if row.status == "ok"),
        num_labeled=sum(row.num_labeled for row in log.clients if row.status == "ok"),
        classes_unnamed=log.classes_unnamed(),
    )
