"""Refuse replies that are far from all others: a deployed cohort's replies are compared before any of them is averaged.

One wild reply can move a mean anywhere. Honest clients that start from such weights diverge, and the run ends. In a
deployment, all replies have arrived before the first is averaged, so they can be compared. In a simulation, workers sum
their replies as they come, and nothing is compared: these workers are ours, and none of their replies lies.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message

from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import Slot
from fedssl.exchange import protocol
from fedssl.metrics.drift import update_norm

LEAST_SHARE = 0.5
"""An update shorter than this share of the sent arrays' length is no outlier; clients without labels hardly move."""

LEAST_CLIENTS = 3
"""Replies of fewer clients than this are not compared; with two, nobody can say which is the outlier."""


class Change(NamedTuple):
    """How a client's reply changed something.

    Args:
        length: L2 norm of the change.
        is_below: Whether the changed values are anywhere below zero.
    """

    length: float
    is_below: bool


@dataclass
class Measure:
    """One thing that replies change: the weights as a whole, or one array of a method's state.

    Args:
        record: Name of the record that holds it.
        before: The arrays as they were sent.
        title: What a change is called in a reason.
        least: A change of at most this length is never too long.
        has_sign: Whether no single client may make it negative; see `OutlierScreen`.
        seen: The worst change of each client in the replies of earlier waves that were not refused, by node.
    """

    record: str
    before: NamedArrays
    title: str
    least: float
    has_sign: bool = False
    seen: dict[int, Change] = field(default_factory=dict)


class OutlierScreen:
    """Put an error in place of each reply of a round that is far from all others.

    An update of the weights is measured as a whole; a method's state is measured array by array, in every record that
    carries some. If an array of the state is nowhere negative, neither as it was sent nor in the other replies, it is a
    count or a share. Then no single reply may have negative values in it. State that is merged over the population is
    excepted: its replies carry changes, such as those of control variates, which may have any sign.

    The replies of a round come at once, or in waves if clients are asked several times. A reply is compared with those of
    its own wave and of earlier ones, but never with other replies of its own client.

    Args:
        carried: The arrays that were sent, by record: the global arrays, and the state of the method.
        slots: The ``server`` slots of the method's state.
        ratio: An update may be this many times as long as the longest update of the other clients. So two clients that
            send equally long wild updates are not refused.
    """

    def __init__(
        self, carried: Mapping[str, NamedArrays], slots: Sequence[Slot], ratio: float
    ) -> None:
        over = {slot.name: slot.merge.over for slot in slots}
        weights = carried[protocol.ARRAYS]
        self._carried = {name: arrays for name, arrays in carried.items() if arrays}
        self._ratio = ratio
        self._measures = [Measure(protocol.ARRAYS, weights, "update", _share_of(weights))]
        for record in protocol.STATE_RECORDS.values():
            for name, array in carried.get(record, {}).items():
                least = max(_share_of({name: array}), math.sqrt(array.size))
                counts = over[protocol.slot_of(name)] == "cohort" and not _is_below_zero(array)
                title = f"change of the state {name!r}"
                self._measures.append(Measure(record, {name: array}, title, least, counts))

    def __call__(self, sent: Sequence[Message], replies: Sequence[Message]) -> Iterator[Message]:
        """Return the replies of a wave in their order, with an error in place of each reply that is far from all others.

        Args:
            sent: The requests of the wave.
            replies: Replies to them, from anybody. A reply that cannot be read is passed on, and refused later.
        """
        requests = {message.metadata.dst_node_id: message for message in sent}
        flaws = self._compare(replies)
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in flaws and node in requests:
                yield protocol.error_reply(requests[node], f"refused: {flaws[node]}")
            else:
                yield reply

    def _compare(self, replies: Sequence[Message]) -> dict[int, str]:
        """Return why the replies of some nodes are refused, and remember the changes in the other replies."""
        # Read each record of each reply once, because only whole records can be read.
        read = {
            name: [
                (reply.metadata.src_node_id, arrays)
                for reply in replies
                if (arrays := _arrays_of(reply, name, like)) is not None
            ]
            for name, like in self._carried.items()
        }
        flaws: dict[int, str] = {}
        waves = [(measure, _changes(measure, read[measure.record])) for measure in self._measures]
        for measure, wave in waves:
            flaws |= _flaws(measure, wave, self._ratio)
        for measure, wave in waves:
            for node in wave.keys() - flaws.keys():
                measure.seen[node] = _wildest(wave[node], measure.seen.get(node))
        return flaws


def _changes(measure: Measure, read: Sequence[tuple[int, NamedArrays]]) -> dict[int, Change]:
    """Return how the clients of a wave changed something, by node; a change that is not finite is left out."""
    found: dict[int, Change] = {}
    for node, arrays in read:
        own = {name: arrays[name] for name in measure.before}
        length = _length(measure.before, own)
        if math.isfinite(length):
            is_below = measure.has_sign and any(map(_is_below_zero, own.values()))
            found[node] = _wildest(Change(length, is_below), found.get(node))
    return found


def _wildest(change: Change, other: Change | None) -> Change:
    """Return the worse of each part of two changes of one client."""
    if other is None:
        return change
    return Change(max(change.length, other.length), change.is_below or other.is_below)


def _flaws(measure: Measure, wave: Mapping[int, Change], ratio: float) -> dict[int, str]:
    """Return the reason for each reply of a wave that is far from those of the other clients, by node.

    Args:
        measure: What is compared.
        wave: The changes in the replies of the wave, by node.
        ratio: See `OutlierScreen`.
    """
    together = {node: _wildest(own, measure.seen.get(node)) for node, own in wave.items()}
    everybody = {**measure.seen, **together}
    if len(everybody) < LEAST_CLIENTS:
        return {}
    flaws = {}
    below = [node for node, change in everybody.items() if change.is_below]
    if len(below) == 1 and below[0] in wave and wave[below[0]].is_below:
        flaws[below[0]] = f"the reply's {measure.title} makes it negative, but no other reply does"
    lengths = {node: change.length for node, change in everybody.items()}
    first, second = sorted(lengths, key=lambda node: lengths[node], reverse=True)[:2]
    for node, (length, _) in wave.items():
        longest = lengths[second if node == first else first]
        if length > max(ratio * longest, measure.least):
            flaws[node] = (
                f"the reply's {measure.title} has length {length:.6g}, more than server.max_update_ratio = {ratio:g} "
                f"times the longest of the others ({longest:.6g})"
            )
    return flaws


def _share_of(arrays: NamedArrays) -> float:
    """Return the length from which on a change of arrays is long beside the arrays themselves."""
    zeros = {name: np.broadcast_to(0.0, array.shape) for name, array in arrays.items()}
    return LEAST_SHARE * _length(zeros, arrays)


def _length(before: NamedArrays, after: NamedArrays) -> float:
    """Return the L2 norm of a change; 0 if all arrays are integers, which count."""
    is_counted = all(np.issubdtype(array.dtype, np.integer) for array in after.values())
    return 0.0 if is_counted else update_norm(before, after)


def _is_below_zero(array: npt.NDArray[Any]) -> bool:
    return bool(array.size) and bool(array.min() < 0)


def _arrays_of(reply: Message, name: str, like: NamedArrays) -> NamedArrays | None:
    """Return the arrays of a reply; None if they cannot be read, which makes an error later."""
    if reply.has_error():
        return None
    try:
        record = reply.content[name]
        if not isinstance(record, ArrayRecord):
            return None
        arrays = protocol.arrays_like(record, protocol.layout_of(like))
    except Exception:  # a stranger's reply can hold anything
        return None
    return arrays
