"""Buffers, such as the running statistics of batch normalization, are kept away from Flower's own strategies.

One of Flower's strategies may take an optimizer step with the arrays it is given, or take their median. Either makes
statistics and counts wrong. So such a strategy sees parameters only, and the buffers of the next global model are the
mean of the cohort's buffers, as in federated averaging.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from flwr.app import ArrayRecord, Message, RecordDict

from fedssl.core.arrays import NamedArrays
from fedssl.exchange import protocol
from fedssl.exchange.reduction import by_examples
from fedssl.exchange.sums import WeightedSum, cohort_mean


def without_buffers(arrays: NamedArrays, buffers: Collection[str]) -> NamedArrays:
    """Return the arrays that are not buffers."""
    return {name: array for name, array in arrays.items() if name not in buffers}


def attach_buffers(
    arrays: NamedArrays, buffers: Collection[str], messages: Iterable[Message]
) -> None:
    """Add the buffers to the parameters in a round's requests, in the order of the global arrays.

    Each request gets a new record. Its old record does not change, because the strategy may keep it.

    Args:
        arrays: The global arrays.
        buffers: Names of the arrays that are buffers.
        messages: Requests that carry the parameters.
    """
    encoded = protocol.to_record({name: arrays[name] for name in arrays if name in buffers})
    if not encoded:
        return
    done: set[int] = set()
    for message in messages:
        if id(message.content) not in done:  # many messages share one content
            handed = message.content.array_records[protocol.ARRAYS]
            whole = {name: encoded.get(name) or handed[name] for name in arrays}
            message.content[protocol.ARRAYS] = ArrayRecord(whole)
            done.add(id(message.content))


class CohortStatistics:
    """Take the buffers out of the replies before a strategy sees them, and average them, weighted by examples.

    Args:
        buffers: Names of the arrays that are buffers.
        sent: The round's requests, in the order in which they are summed.
    """

    def __init__(self, buffers: Collection[str], sent: Sequence[Message]) -> None:
        self._buffers = buffers
        self._places = {message.metadata.dst_node_id: place for place, message in enumerate(sent)}
        self._sum = WeightedSum(len(sent))

    def set_aside(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield each reply anew with its parameters and metrics only; an error reply passes unchanged.

        Args:
            replies: Checked replies: each holds every array in its shape and type, or is an error.
        """
        for reply in replies:
            if reply.has_error():
                yield reply
                continue
            arrays = reply.content.array_records[protocol.ARRAYS]
            own = {name: arrays[name] for name in arrays if name in self._buffers}
            weight = by_examples(protocol.metrics_of(reply))
            place = self._places.pop(reply.metadata.src_node_id)
            self._sum.add(place, protocol.from_record(ArrayRecord(own)), weight)
            others = ArrayRecord({name: a for name, a in arrays.items() if name not in own})
            metrics = reply.content.metric_records[protocol.METRICS]
            content = RecordDict({protocol.ARRAYS: others, protocol.METRICS: metrics})
            yield protocol.message_of(reply.metadata, content)
        for place in self._places.values():
            self._sum.skip(place)

    def mean(self, arrays: NamedArrays) -> NamedArrays:
        """Return the buffers of the next global model: the mean of the cohort's, or the old buffers if no reply counts.

        Call this method after the iterator of `set_aside` has ended.

        Args:
            arrays: The global arrays at the start of the round.
        """
        old = {name: array for name, array in arrays.items() if name in self._buffers}
        sums, weight = self._sum.result()
        return old if sums is None else cohort_mean(sums, weight, old)
