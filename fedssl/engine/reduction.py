"""What is made of a round's replies: checked, and summed in a fixed tree, in whatever process they arise.

A worker reduces the replies of its clients to one sum and a few numbers of each, so that neither the traffic to the
server nor its memory grows with m.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from flwr.app import Message

from fedssl import protocol
from fedssl.aggregation import Arrays, Span, Sums, WeightedSum, is_finite
from fedssl.metrics.drift import rounding, update_norm

Weigh = Callable[[Mapping[str, float]], float]
"""How much a reply counts by its metrics; a pure function that travels to the workers."""

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
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
    received: Arrays = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sent: Mapping[str, Arrays],
        weigh: Mapping[str, Weigh],
        num_classes: int | None = None,
        longest: float = math.inf,
    ) -> "Reduction":
        """Return the reduction of replies that must look like what was sent; records without arrays are left out."""
        layouts = {name: layout_of(arrays) for name, arrays in sent.items() if arrays}
        known = {n: w for n, w in weigh.items() if n in layouts}
        received = {} if longest == math.inf else sent[protocol.ARRAYS]
        return cls(layouts, known, num_classes, longest, received)


def layout_of(arrays: Arrays) -> Layout:
    """Return the shape and type of every array."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


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

    def add(self, place: int, reply: Message) -> Answer:
        """Add what a reply carries, or leave its place out if it must not be summed; return what is left of it."""
        node = reply.metadata.src_node_id
        if reply.has_error():
            return self.leave_out(place, node, reply.error.reason or "no reason given")
        metrics = protocol.all_metrics_of(reply)
        try:
            arrays = {n: protocol.arrays_of(reply.content, n) for n in self.reduction.layouts}
        except (ValueError, TypeError) as error:
            reason = f"refused: the reply's arrays cannot be read: {error}"
            return self.leave_out(place, node, reason)
        return self.add_arrays(place, node, metrics, arrays, protocol.num_bytes(reply.content))

    def add_arrays(
        self,
        place: int,
        node: int,
        metrics: protocol.Metrics,
        arrays: Mapping[str, Arrays | None],
        num_bytes: int,
    ) -> Answer:
        """Add what a reply carries, as `add` does.

        Args:
            place: The reply's.
            node: Who replied.
            metrics: All that it carries.
            arrays: Named arrays of every record that is looked at; None if there is no such record.
            num_bytes: Bytes of all its arrays as they travel.
        """
        single, by_class = protocol.single_values(metrics), protocol.class_counts(metrics)
        flaw = self._flaw(single, arrays) or self._flaw_by_class(by_class)
        if flaw is not None:
            return self.leave_out(place, node, f"refused: {flaw}")
        for name, weigh in self.reduction.weigh.items():
            self._sums[name].add(place, arrays[name] or {}, weigh(single))
        return Answer(node, single, num_bytes, by_class=by_class)

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

    def _flaw(
        self, metrics: Mapping[str, float], arrays: Mapping[str, Arrays | None]
    ) -> str | None:
        """Say why a reply must not be summed, or None."""
        if not metrics or any(found is None for found in arrays.values()):
            return "the reply lacks its arrays or its metrics"
        for name in protocol.COUNTS:
            if not 0 <= metrics.get(name, -1.0) < math.inf:
                return f"the reply's {name} is {metrics.get(name)}"
        for name, layout in self.reduction.layouts.items():
            found = arrays[name] or {}
            if layout_of(found) != layout:
                return "the reply's arrays differ from the model's in name, shape or type"
            if not is_finite(found):
                return "the reply's weights are not finite"
        return self._flaw_of_length(arrays.get(protocol.ARRAYS) or {})

    def _flaw_of_length(self, arrays: Arrays) -> str | None:
        """Say why an update is too long to be summed, or None."""
        reduction = self.reduction
        if reduction.longest == math.inf:
            return None
        length = update_norm(reduction.received, arrays)
        if math.isfinite(length) and length <= reduction.longest + rounding(arrays):
            return None
        return f"the reply's update has length {length:.6g}, more than {reduction.longest:.6g}"

    def _flaw_by_class(self, counts: Sequence[float] | None) -> str | None:
        """Say why counts by class must not be summed, or None."""
        if counts is None:
            return None
        num_classes = self.reduction.num_classes
        if num_classes is not None and len(counts) != 4 * num_classes:
            return (
                f"the reply's {protocol.BY_CLASS} has {len(counts)} numbers, not {4 * num_classes}"
            )
        false = [count for count in counts if not 0 <= count < math.inf]
        return f"the reply's {protocol.BY_CLASS} holds {false[0]}" if false else None
