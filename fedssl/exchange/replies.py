"""A client's reply, decoded once: the code that checks, sums, logs and records it reads the same `Reply`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message

from fedssl.core.arrays import NamedArrays
from fedssl.exchange import protocol
from fedssl.exchange.protocol import Layout

MOST_METRICS = 96
"""A reply carries at most this many metrics."""


@dataclass(frozen=True)
class Reply:
    """A client's reply to a training request.

    Args:
        node: Node id of the client.
        metrics: Single-valued metrics by name; the name of a number that the method records is ``number/NAME``.
        lists: Metrics that are lists, by name.
        arrays: Named arrays of every requested record, by the record's name.
        num_bytes: Number of bytes of all encoded arrays of the reply.
    """

    node: int
    metrics: Mapping[str, float]
    lists: Mapping[str, Sequence[float]] = field(default_factory=dict)
    arrays: Mapping[str, NamedArrays] = field(default_factory=dict)
    num_bytes: int = 0

    @property
    def is_inactive(self) -> bool:
        """Whether the client sat the round out; then the reply carries no arrays."""
        return is_inactive(self.metrics)


def is_inactive(metrics: Mapping[str, float]) -> bool:
    """Return whether the metrics of a reply say that the client sat the round out."""
    return bool(metrics.get(protocol.INACTIVE))


def read_reply(message: Message, layouts: Mapping[str, Layout]) -> Reply:
    """Decode the reply of another party: exactly the requested arrays, and metrics.

    Args:
        message: Any message but an error; nothing in it is believed.
        layouts: Shape and type of each array that the reply must carry, by record. The reply of a client that sat the
            round out carries none of them.

    Raises:
        ValueError: The reply cannot be read, or does not hold exactly what was requested; the message says why.
    """
    try:
        records = dict(message.content)
        metrics = protocol.all_metrics_of(message)
        single, lists = protocol.split_metrics(metrics)
        wanted = () if is_inactive(single) else layouts
        found = {name: records.pop(name, None) for name in wanted}
        records.pop(protocol.METRICS, None)
        arrays = {
            name: protocol.arrays_like(record, layouts[name])
            for name, record in found.items()
            if isinstance(record, ArrayRecord)
        }
        num_bytes = protocol.num_bytes(message.content)
        num_metrics = len(metrics)
    except ValueError:
        raise
    except Exception as error:  # a bad reply may fail in any way, and must hurt no other reply
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not metrics or len(arrays) < len(found):
        raise ValueError("the reply lacks its arrays or its metrics")
    if more := sum(bool(record) for record in records.values()):
        raise ValueError(f"the reply holds {more} records that were not asked for")
    if num_metrics > MOST_METRICS:
        raise ValueError(f"the reply holds {num_metrics} metrics, more than {MOST_METRICS}")
    return Reply(message.metadata.src_node_id, single, lists, arrays, num_bytes)
