"""What is made of a round's replies: checked, and summed in a fixed tree, in whatever process they arise.

A worker reduces the replies of its clients to one sum and a few numbers of each, so that neither the traffic to the
server nor its memory grows with m.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flwr.app import ArrayRecord, Message

from fedssl.core.arrays import NamedArrays
from fedssl.exchange import protocol
from fedssl.exchange.checks import MOST_METRICS, Holding, flaw_of_arrays, flaw_of_metrics
from fedssl.exchange.protocol import Layout, layout_of
from fedssl.exchange.sums import Span, Sums, WeightedSum
from fedssl.metrics.drift import rounding, update_norm

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
        by_class: Its pseudo-labels by class; None where it says nothing of them. See `protocol.BY_CLASS`.
    """

    node: int
    metrics: Mapping[str, float] | None
    num_bytes: int = 0
    reason: str = ""
    by_class: Sequence[float] | None = None


def by_examples(metrics: Mapping[str, float]) -> float:
    """Return a client's number of examples."""
    return metrics[protocol.NUM_EXAMPLES]


@dataclass(frozen=True)
class Reduction:
    """How the replies of a round are checked and summed.

    Args:
        layouts: Shape and type of each array that a reply must carry, by record.
        weigh: How much a reply counts in the sum of a record; records that are not named are not summed.
        num_classes: Of how many a reply may count pseudo-labels; None: of any number.
        longest: L2 norm that an update may have, but for rounding.
        received: Weights that updates are against; none where `longest` is infinite.
    """

    layouts: Mapping[str, Layout]
    weigh: Mapping[str, Weigh]
    num_classes: int | None = None
    longest: float = math.inf
    received: NamedArrays = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sent: Mapping[str, NamedArrays],
        weigh: Mapping[str, Weigh],
        num_classes: int | None = None,
        longest: float = math.inf,
    ) -> "Reduction":
        """Return the reduction of replies that must look like what was sent; records without arrays are left out."""
        layouts = {name: layout_of(arrays) for name, arrays in sent.items() if arrays}
        known = {n: w for n, w in weigh.items() if n in layouts}
        received = {} if longest == math.inf else sent[protocol.ARRAYS]
        return cls(layouts, known, num_classes, longest, received)


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

    def add(self, place: int, reply: Message, holding: Holding | None = None) -> Answer:
        """Add what a reply carries, or leave its place out if it must not be summed; return what is left of it.

        Args:
            place: The reply's.
            reply: Anything: nothing in it is believed, and no exception that it causes leaves this method.
            holding: What the census said of its client; None: it is not known.
        """
        node = reply.metadata.src_node_id
        try:
            if reply.has_error():
                return self.leave_out(place, node, reply.error.reason or "no reason given")
            metrics, arrays = self._read(reply)
            size = protocol.num_bytes(reply.content)
            return self._add(place, node, metrics, arrays, size, holding)
        except _Refused as error:
            return self.leave_out(place, node, f"refused: {error}")

    def _read(self, reply: Message) -> tuple[protocol.Metrics, Mapping[str, NamedArrays]]:
        """Return the metrics and the arrays of a reply that has as many and as large ones as were asked for.

        Raises:
            _Refused: It has not, or cannot be read.
        """
        try:
            records = dict(reply.content)
            metrics = protocol.all_metrics_of(reply)
            found = {name: records.pop(name, None) for name in self.reduction.layouts}
            records.pop(protocol.METRICS, None)
            arrays = {
                name: protocol.arrays_like(record, self.reduction.layouts[name])
                for name, record in found.items()
                if isinstance(record, ArrayRecord)
            }
        except Exception as error:  # whatever it is, it is this reply's and nobody else's
            raise _Refused(_said(error)) from None
        if not metrics or len(arrays) < len(found):
            raise _Refused("the reply lacks its arrays or its metrics")
        if more := sum(bool(record) for record in records.values()):
            raise _Refused(f"the reply holds {more} records that were not asked for")
        if len(metrics) > MOST_METRICS:
            raise _Refused(f"the reply holds {len(metrics)} metrics, more than {MOST_METRICS}")
        return metrics, arrays

    def add_arrays(
        self,
        place: int,
        node: int,
        metrics: protocol.Metrics,
        arrays: Mapping[str, NamedArrays],
        num_bytes: int,
        holding: Holding | None = None,
    ) -> Answer:
        """Add what a client would reply, as `add` does, where no message is made of it.

        Args:
            place: The reply's.
            node: Who replied.
            metrics: All that it carries.
            arrays: Named arrays of every record that is looked at.
            num_bytes: Bytes of all its arrays as they travel.
            holding: What the census said of the client; None: it is not known.
        """
        for name, layout in self.reduction.layouts.items():
            if layout_of(arrays.get(name, {})) != layout:
                return self.leave_out(place, node, f"refused: {protocol.DIFFERENT}")
        try:
            return self._add(place, node, metrics, arrays, num_bytes, holding)
        except _Refused as error:
            return self.leave_out(place, node, f"refused: {error}")

    def _add(
        self,
        place: int,
        node: int,
        metrics: protocol.Metrics,
        arrays: Mapping[str, NamedArrays],
        num_bytes: int,
        holding: Holding | None,
    ) -> Answer:
        """Add arrays that are of the layout, and metrics of which nothing is known; arguments as in `add_arrays`.

        Raises:
            _Refused: They must not be added.
        """
        single, by_class, weights = self._checked(metrics, arrays, holding)
        for name, weight in weights.items():
            self._sums[name].add(place, arrays[name], weight)
        return Answer(node, single, num_bytes, by_class=by_class)

    def _checked(
        self,
        metrics: protocol.Metrics,
        arrays: Mapping[str, NamedArrays],
        holding: Holding | None,
    ) -> tuple[Mapping[str, float], Sequence[float] | None, Mapping[str, float]]:
        """Return single-valued metrics, counts by class and how much each record counts, all of which can be believed.

        Raises:
            _Refused: They cannot.
        """
        try:
            single, by_class = protocol.single_values(metrics), protocol.class_counts(metrics)
            flaw = self._flaw_of_counts(by_class) or flaw_of_metrics(single, by_class, holding)
            for name in self.reduction.layouts:
                flaw = flaw or flaw_of_arrays(arrays[name])
            flaw = flaw or self._flaw_of_length(arrays.get(protocol.ARRAYS, {}))
            weights = {} if flaw else {n: w(single) for n, w in self.reduction.weigh.items()}
        except Exception as error:
            raise _Refused(_said(error)) from None
        if flaw:
            raise _Refused(flaw)
        for weight in weights.values():
            if not 0 <= weight < math.inf:
                raise _Refused(f"the reply counts {weight:g} times")
        return single, by_class, weights

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
        if math.isfinite(length) and length <= reduction.longest + rounding(arrays):
            return None
        return f"the reply's update has length {length:.6g}, more than {reduction.longest:.6g}"

    def _flaw_of_counts(self, counts: Sequence[float] | None) -> str | None:
        """Say why there are too many or too few counts by class, or None."""
        num_classes = self.reduction.num_classes
        if counts is None or num_classes is None or len(counts) == 4 * num_classes:
            return None
        return f"the reply's {protocol.BY_CLASS} has {len(counts)} numbers, not {4 * num_classes}"


class _Refused(Exception):
    """A reply must not be summed; says why."""


def _said(error: Exception) -> str:
    """Return what an exception says; one of ours, a ValueError, needs no name."""
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
