"""What the server saw of one round, and what of it must not be averaged."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from fedssl import protocol
from fedssl.aggregation import is_finite
from fedssl.metrics.accuracy import Evaluation
from fedssl.metrics.pseudo_labels import pseudo_label_accuracy, pseudo_label_coverage
from fedssl.record.rows import NAN, ClientRow, Failure, NamedArrays, RoundRow
from fedssl.system.clock import Fate
from strategies.census import Census
from strategies.shared_state import SharedState

PSEUDO_COUNTS = ("considered", "accepted", "judged", "right")

Fates = Mapping[int, Fate]


class RoundLog:
    """What the server saw of one round; refuses replies that must not be averaged.

    Args:
        round: Round of the run, from 1.
        census: Who is there.
        arrays: Weights that were sent, which every reply must match in names and shapes.
        shared: State of the method that was sent, likewise.
        fates: What virtual time makes of the clients that were asked; empty without it.
    """

    def __init__(
        self,
        round: int,
        census: Census,
        arrays: NamedArrays,
        shared: SharedState,
        fates: Fates,
    ) -> None:
        self.round = round
        self.clients: list[ClientRow] = []
        self.failures: list[Failure] = []
        self.tally = _Tally()
        self._census = census
        self._shared = shared
        self._fates = fates
        self._layouts = {protocol.ARRAYS: _layout(arrays)}
        if shared.arrays:
            self._layouts[protocol.STATE] = _layout(shared.arrays)

    @property
    def num_ok(self) -> int:
        """Clients whose reply counts."""
        return sum(row.status == "ok" for row in self.clients)

    @property
    def num_lost(self) -> int:
        """Clients that virtual time left out."""
        return len(self.clients) - self.num_ok - len(self.failures)

    def sent(self, messages: list[Message]) -> list[Message]:
        """Return the requests whose clients make it, and note the others; all of them have been sent the weights."""
        if messages:
            self.tally.bytes_down = protocol.num_bytes(messages[0].content) * len(messages)
        kept = []
        for message in messages:
            client = self._census.client_at[message.metadata.dst_node_id]
            fate = self._fates.get(client)
            if fate is None or fate.status == "ok":
                kept.append(message)
                continue
            row = ClientRow(
                round=self.round,
                client=client,
                status=fate.status,
                num_examples=int(self._census.num_examples[client]),
                num_labeled=int(self._census.num_labeled[client]),
                virtual_seconds=fate.seconds,
            )
            self.clients.append(row)
        return kept

    def watch(self, messages: list[Message], replies: Iterable[Message]) -> Iterator[Message]:
        """Pass replies on, an error in place of each that is refused, and note them all."""
        waiting = {message.metadata.dst_node_id for message in messages}
        for reply in replies:
            node = reply.metadata.src_node_id
            if node not in waiting:
                continue
            waiting.discard(node)
            flaw = None if reply.has_error() else self._flaw(reply)
            if flaw is not None:
                reply = protocol.refused(reply, flaw)
            self._note(self._census.client_at[node], reply)
            yield reply if reply.has_error() else self._shared.detach(reply)
        for node in sorted(waiting):
            self._fail(self._census.client_at[node], "no reply in time")
        self.clients.sort(key=lambda row: row.client)
        self.failures.sort(key=lambda failure: failure.client)

    def _flaw(self, reply: Message) -> str | None:
        """Say why a reply must not be averaged, or None."""
        content = reply.content
        missing = [name for name in self._layouts if name not in content.array_records]
        if missing or protocol.METRICS not in content.metric_records:
            return "refused: the reply lacks its arrays or its metrics"
        metrics = protocol.metrics_of(reply)
        for name in protocol.COUNTS:
            if not 0 <= metrics.get(name, -1.0) < math.inf:
                return f"refused: the reply's {name} is {metrics.get(name)}"
        for name, layout in self._layouts.items():
            try:
                arrays = protocol.from_record(content.array_records[name])
            except (ValueError, TypeError) as error:
                return f"refused: the reply's arrays cannot be read: {error}"
            if _layout(arrays) != layout:
                return "refused: the reply's arrays differ from the model's in name, shape or type"
            if not is_finite(arrays):
                return "refused: the reply's weights are not finite"
        return None

    def _note(self, client: int, reply: Message) -> None:
        if reply.has_error():
            self._fail(client, reply.error.reason or "no reason given")
            return
        metrics = protocol.metrics_of(reply)
        size = protocol.num_bytes(reply.content)
        counts = [metrics.get(f"pseudo-{count}", 0.0) for count in PSEUDO_COUNTS]
        considered, accepted, judged, right = counts
        steps = int(metrics.get("num-steps", 0))
        loss = metrics.get("loss", NAN)
        self.tally.add(steps, loss, counts, size)
        self.clients.append(
            ClientRow(
                round=self.round,
                client=client,
                status="ok",
                num_examples=int(metrics.get(protocol.NUM_EXAMPLES, 0)),
                num_labeled=int(metrics.get(protocol.NUM_LABELED, 0)),
                num_confident=metrics.get(protocol.NUM_CONFIDENT, 0.0),
                num_steps=steps,
                loss=loss,
                pseudo_label_accuracy=pseudo_label_accuracy(judged, right),
                pseudo_label_coverage=pseudo_label_coverage(considered, accepted),
                seconds=metrics.get("seconds", NAN),
                bytes_up=size,
                virtual_seconds=self._virtual_seconds(client),
            )
        )

    def _virtual_seconds(self, client: int) -> float:
        return self._fates[client].seconds if client in self._fates else NAN

    def _fail(self, client: int, reason: str) -> None:
        last = reason.strip().splitlines()[-1] if reason.strip() else "no reason given"
        seconds = self._virtual_seconds(client)
        row = ClientRow(self.round, client, "failed", last, virtual_seconds=seconds)
        self.clients.append(row)
        self.failures.append(Failure(self.round, client, reason))


def _layout(arrays: NamedArrays) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


@dataclass
class _Tally:
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
    """Return the line of a round.

    Args:
        log: What was seen of it.
        phase: From 0.
        method: The phase's.
        seconds: It took.
        model, ema: How the global model and its average did; None where they were not evaluated.
        virtual_seconds: The virtual clock after it; NaN without one.
    """
    tally = log.tally
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
        virtual_seconds=virtual_seconds,
    )
