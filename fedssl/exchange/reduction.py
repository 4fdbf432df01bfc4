"""What is made of a round's replies: checked, and summed in a fixed tree, in whatever process they arise.

A worker reduces the replies of its clients to one sum and a few numbers of each, so that neither the traffic to the
server nor its memory grows with m.
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
"""How much a reply counts by its metrics; a pure function that travels to the workers."""

Sum = tuple[Sums | None, float]
"""A sum and the weight behind it; None if nothing counted."""


class Answer(NamedTuple):
    """What is left of a reply once what it carries has been summed.

    Args:
        node: Who replied.
        metrics: Its single-valued metrics; None if there is no usable reply.
        num_bytes: Bytes of the arrays that it carried.
        reason: Why there is no usable reply; the client's traceback.
        lists: Its metrics that are lists, by name.
    """

    node: int
    metrics: Mapping[str, float] | None
    num_bytes: int = 0
    reason: str = ""
    lists: Mapping[str, Sequence[float]] = {}


def by_examples(metrics: Mapping[str, float]) -> float:
    """Return a client's number of examples."""
    return metrics[protocol.NUM_EXAMPLES]


@dataclass(frozen=True)
class Reduction:
    """How the replies of a round are checked and summed.

    Args:
        layouts: Shape and type of each array that a reply must carry, by record.
        weigh: How much a reply counts in the sum of a record; records that are not named are not summed.
        longest: L2 norm that an update may have, but for rounding.
        received: Weights that updates are against; none where `longest` is infinite.
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
        """Return the reduction of replies that must look like what was sent; records without arrays are left out."""
        layouts = {name: layout_of(arrays) for name, arrays in sent.items() if arrays}
        known = {n: w for n, w in weigh.items() if n in layouts}
        received = {} if longest == math.inf else sent[protocol.ARRAYS]
        return cls(layouts, known, longest, received)


class CohortSums:
    """The sums of one round, or of a part of its cohort: replies are added at their places, in any order.

    Args:
        reduction: What to do with each.
        size: Places.
    """

    def __init__(self, reduction: Reduction, size: int) -> None:
        self.reduction = reduction
        self.size = size
        self._sums = {name: WeightedSum(size) for name in reduction.weigh}

    def add(self, place: int, message: Message, holding: Holding | None = None) -> Answer:
        """Add what a reply carries, or leave its place out if it must not be summed; return what is left of it.

        Args:
            place: The reply's place in the cohort.
            message: Anything: nothing in it is believed, and no exception that it causes leaves this method.
            holding: What the census said of its client; None: it is not known.
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
        """Add a reply of which no message was made; as `add` else."""
        for name, layout in self.reduction.layouts.items():
            if layout_of(reply.arrays.get(name, {})) != layout:
                return self.leave_out(place, reply.node, f"refused: {protocol.DIFFERENT}")
        return self._add(place, reply, holding)

    def _add(self, place: int, reply: Reply, holding: Holding | None) -> Answer:
        """Add a reply whose arrays are of the layout, and of whose metrics nothing is known."""
        try:
            weights = self._weights_of(reply, holding)
        except ValueError as error:
            return self.leave_out(place, reply.node, f"refused: {error}")
        for name, weight in weights.items():
            self._sums[name].add(place, reply.arrays[name], weight)
        return Answer(reply.node, reply.metrics, reply.num_bytes, lists=reply.lists)

    def _weights_of(self, reply: Reply, holding: Holding | None) -> Mapping[str, float]:
        """Return how much each record of a reply counts.

        Raises:
            ValueError: The reply cannot be believed, or must not be added.
        """
        try:
            flaw = flaw_of_metrics(reply.metrics, reply.lists, holding)
            for name in self.reduction.layouts:
                flaw = flaw or flaw_of_arrays(reply.arrays[name])
            flaw = flaw or self._flaw_of_length(reply.arrays.get(protocol.ARRAYS, {}))
            weigh = {} if flaw else self.reduction.weigh
            weights = {name: of_metrics(reply.metrics) for name, of_metrics in weigh.items()}
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if flaw:
            raise ValueError(flaw)
        for weight in weights.values():
            if not 0 <= weight < math.inf:
                raise ValueError(f"the reply counts {weight:g} times")
        return weights

    def leave_out(self, place: int, node: int, reason: str) -> Answer:
        """Leave a place out; return the answer that says why."""
        self.skip([place])
        return Answer(node, None, reason=reason)

    def skip(self, places: Iterable[int]) -> None:
        """Leave places out."""
        for place in places:
            for total in self._sums.values():
                total.skip(place)

    def add_part(self, span: Span, part: Mapping[str, Sum]) -> None:
        """Add the result of the sums over a node of the tree; see `WeightedSum.add_part`."""
        for name, (sums, weight) in part.items():
            self._sums[name].add_part(span, sums, weight)

    def result(self) -> dict[str, Sum]:
        """Return each record's sum over all places, every one of which was added or left out."""
        return {name: total.result() for name, total in self._sums.items()}

    def _flaw_of_length(self, arrays: NamedArrays) -> str | None:
        """Say why an update is too long to be summed, or None."""
        reduction = self.reduction
        if reduction.longest == math.inf:
            return None
        length = update_norm(reduction.received, arrays)
        if math.isfinite(length) and length <= reduction.longest + rounding_norm(arrays):
            return None
        return f"the reply's update has length {length:.6g}, more than {reduction.longest:.6g}"
