"""Check a round's replies and sum them in a fixed tree, in the process in which they arise.

A worker reduces the replies of its clients to one sum and a few numbers of each reply. So neither the traffic to the
server nor the server's memory grows with m, the number of sampled clients.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flwr.app import Message

from fedssl.core.arrays import NamedArrays
from fedssl.exchange import protocol
from fedssl.exchange.checks import Holding, flaw_of_arrays, flaw_of_metrics
from fedssl.exchange.protocol import Layout, layout_of
from fedssl.exchange.replies import Reply, read_reply
from fedssl.exchange.sums import Span, Sums, WeightedSum
from fedssl.metrics.drift import rounding_norm, update_norm

Weigh = Callable[[Mapping[str, float]], float]
"""A function from the metrics of a reply to its weight in a sum. It is pure and is sent to the workers."""

Sum = tuple[Sums | None, float]
"""A weighted sum and its total weight; the sum is None if no reply counted."""


NO_REPLY = "no reply in time"
"""The reason for a client whose reply did not arrive."""


class Answer(NamedTuple):
    """The part of a reply that remains after its arrays have been summed.

    Args:
        node: Id of the node that replied.
        metrics: The reply's single-valued metrics; None if there is no usable reply.
        num_bytes: Number of bytes of the reply's arrays.
        reason: Why there is no usable reply, such as the client's traceback.
        lists: The reply's metrics that are lists, by name.
    """

    node: int
    metrics: Mapping[str, float] | None
    num_bytes: int = 0
    reason: str = ""
    lists: Mapping[str, Sequence[float]] = {}


def by_examples(metrics: Mapping[str, float]) -> float:
    """Return a client's number of examples, which is its weight in federated averaging."""
    return metrics[protocol.NUM_EXAMPLES]


def uniformly(metrics: Mapping[str, float]) -> float:
    """Return 1, the same weight for every client."""
    return 1.0


WEIGH_STATE: Mapping[str, Weigh] = {protocol.STATE: by_examples, protocol.UNIFORM_STATE: uniformly}
"""The weight of a reply in the sum of each record of ``server`` state."""


@dataclass(frozen=True)
class Reduction:
    """How the replies of a round are checked and summed.

    Args:
        layouts: Shape and type of each array that a reply must carry, by record.
        weigh: Weight of a reply in the sum of each record; a record that is not named here is not summed.
        longest: Largest L2 norm of an update, up to rounding.
        received: Weights that clients received, from which updates are measured; empty if `longest` is infinite.
    """

    layouts: Mapping[str, Layout]
    weigh: Mapping[str, Weigh]
    longest: float = math.inf
    received: NamedArrays = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sent: Mapping[str, NamedArrays],
        weigh: Mapping[str, Weigh],
        longest: float = math.inf,
    ) -> "Reduction":
        """Return the reduction for replies that must have the layout of the sent arrays; empty records are left out."""
        layouts = {name: layout_of(arrays) for name, arrays in sent.items() if arrays}
        known = {n: w for n, w in weigh.items() if n in layouts}
        received = {} if longest == math.inf else sent[protocol.ARRAYS]
        return cls(layouts, known, longest, received)


class CohortSums:
    """The sums of a cohort, or of a part of it: replies are added at their places, in any order.

    Args:
        reduction: How replies are checked and summed.
        size: Number of places.
        keeps_replies: Whether every reply that counts is also kept, for strategies that need single replies.
        saved: Returns how many bytes of a reply need not travel; see `ReplyStrategy.bytes_saved_up`.
    """

    def __init__(
        self,
        reduction: Reduction,
        size: int,
        *,
        keeps_replies: bool = False,
        saved: Callable[[Reply], int] | None = None,
    ) -> None:
        self.reduction = reduction
        self.size = size
        self.replies: dict[int, Reply] = {}
        """The replies that count, by place, if they are kept; a client that sat the round out has none."""
        self._keeps_replies = keeps_replies
        self._saved = saved
        self._sums = {name: WeightedSum(size) for name in reduction.weigh}

    def add(self, place: int, message: Message, holding: Holding | None = None) -> Answer:
        """Check a reply and add its arrays, or leave its place out if the reply is refused; return its `Answer`.

        Args:
            place: The reply's place in the cohort.
            message: Any message: nothing in it is believed, and no exception that it causes leaves this method.
            holding: What the census says about the client; None: unknown.
        """
        node = message.metadata.src_node_id
        if message.has_error():
            return self.leave_out(place, node, message.error.reason or "no reason given")
        try:
            reply = read_reply(message, self.reduction.layouts)
        except ValueError as error:
            return self.leave_out(place, node, f"refused: {error}")
        return self._add(place, reply, holding)

    def add_reply(self, place: int, reply: Reply, holding: Holding | None = None) -> Answer:
        """Add a reply that never was a message; otherwise the same as `add`."""
        for name, layout in self.reduction.layouts.items():
            if layout_of(reply.arrays.get(name, {})) != layout:
                return self.leave_out(place, reply.node, f"refused: {protocol.DIFFERENT}")
        return self._add(place, reply, holding)

    def _add(self, place: int, reply: Reply, holding: Holding | None) -> Answer:
        """Add a reply whose arrays have the right layout and whose metrics are not yet checked."""
        try:
            weights = self._weights_of(reply, holding)
        except ValueError as error:
            return self.leave_out(place, reply.node, f"refused: {error}")
        if reply.is_inactive:
            self.skip([place])
        elif self._keeps_replies:
            self.replies[place] = reply
        for name, weight in weights.items():
            self._sums[name].add(place, reply.arrays[name], weight)
        num_bytes = reply.num_bytes
        if self._saved is not None and not reply.is_inactive:
            num_bytes -= self._saved(reply)
        return Answer(reply.node, reply.metrics, num_bytes, lists=reply.lists)

    def _weights_of(self, reply: Reply, holding: Holding | None) -> Mapping[str, float]:
        """Return the weight of each record of a reply.

        Raises:
            ValueError: The reply cannot be believed or must not be added; the message says why.
        """
        try:
            flaw = flaw_of_metrics(reply.metrics, reply.lists, holding)
            for arrays in reply.arrays.values():
                flaw = flaw or flaw_of_arrays(arrays)
            if not reply.is_inactive:
                flaw = flaw or self._flaw_of_length(reply.arrays.get(protocol.ARRAYS, {}))
            weigh = {} if flaw or reply.is_inactive else self.reduction.weigh
            weights = {name: of_metrics(reply.metrics) for name, of_metrics in weigh.items()}
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if flaw:
            raise ValueError(flaw)
        for weight in weights.values():
            if not 0 <= weight < math.inf:
                raise ValueError(f"the reply's weight in the sum is {weight:g}")
        return weights

    def leave_out(self, place: int, node: int, reason: str) -> Answer:
        """Leave a place out, and return the answer that says why."""
        self.skip([place])
        return Answer(node, None, reason=reason)

    def skip(self, places: Iterable[int]) -> None:
        """Leave places out."""
        for place in places:
            for total in self._sums.values():
                total.skip(place)

    def add_part(self, span: Span, part: Mapping[str, Sum]) -> None:
        """Add the sums of a part of the cohort, which is a node of the tree; see `WeightedSum.add_part`."""
        for name, (sums, weight) in part.items():
            self._sums[name].add_part(span, sums, weight)

    def result(self) -> dict[str, Sum]:
        """Return each record's sum over all places; every place must have been added or left out before."""
        return {name: total.result() for name, total in self._sums.items()}

    def _flaw_of_length(self, arrays: NamedArrays) -> str | None:
        """Return why an update is too long to be summed, or None."""
        reduction = self.reduction
        if reduction.longest == math.inf:
            return None
        length = update_norm(reduction.received, arrays)
        if math.isfinite(length) and length <= reduction.longest + rounding_norm(arrays):
            return None
        return f"the reply's update has length {length:.6g}, more than {reduction.longest:.6g}"
