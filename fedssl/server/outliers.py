"""Replies that are far from everybody else's: a deployed cohort's are compared before any of them is averaged.

A mean follows one wild reply wherever it goes, and from weights that lie far off honest clients diverge, which ends the run.
Replies of a deployment are all there when the first is averaged, so that they can be compared with each other. Workers of a
simulation sum theirs as they come; they are ours, and nobody there lies.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message

from fedssl.core.arrays import NamedArrays
from fedssl.exchange import protocol
from fedssl.metrics.drift import update_norm

LEAST_SHARE = 0.5
"""An update that is shorter than this share of what was sent is no outlier: where few clients hold labels, the others hardly move."""

LEAST_REPLIES = 3
"""Of two replies, nobody can say which is the wild one."""


def without_outliers(
    sent: Sequence[Message],
    replies: Sequence[Message],
    carried: Mapping[str, NamedArrays],
    ratio: float,
) -> Iterator[Message]:
    """Yield replies in their order, an error in place of each that is far from all others.

    An update of the weights is measured as a whole, a method's state array by array. State that is nowhere negative, in what was
    sent and in the other replies, is a count or a share, and must not be negative in one reply either.

    Args:
        sent: The requests that they answer.
        replies: Of one round, from anybody; what cannot be read is passed on, for others to refuse.
        carried: What was sent, by record: the global arrays, and the state of the method.
        ratio: How many times as long as the longest of the others an update may be. Two that lie alike are each other's measure.
    """
    requests = {message.metadata.dst_node_id: message for message in sent}
    flaws: dict[int, str] = {}
    read = {
        name: {
            reply.metadata.src_node_id: arrays
            for reply in replies
            if (arrays := _arrays_of(reply, name, received)) is not None
        }
        for name, received in carried.items()
        if received
    }
    for node, reason in _long(read.get(protocol.ARRAYS, {}), carried[protocol.ARRAYS], ratio, 0.0):
        flaws[node] = f"the reply's update {reason}"
    state = read.get(protocol.STATE, {})
    for name, before in carried.get(protocol.STATE, {}).items():
        own = {node: {name: arrays[name]} for node, arrays in state.items()}
        below = [node for node, arrays in own.items() if _is_below_zero(arrays[name])]
        if len(own) >= LEAST_REPLIES and len(below) == 1 and not _is_below_zero(before):
            flaws[below[0]] = f"the reply's state {name!r} is negative, and nobody else's is"
        for node, reason in _long(own, {name: before}, ratio, math.sqrt(before.size)):
            flaws[node] = f"the reply's change of the state {name!r} {reason}"
    for reply in replies:
        node = reply.metadata.src_node_id
        if node in flaws and node in requests:
            yield protocol.error_reply(requests[node], f"refused: {flaws[node]}")
        else:
            yield reply


def _long(
    replies: Mapping[int, NamedArrays], before: NamedArrays, ratio: float, least: float
) -> Iterator[tuple[int, str]]:
    """Yield (node, why) of every reply whose update is longer than all others by more than it may be."""
    lengths = {node: update_norm(before, arrays) for node, arrays in replies.items()}
    lengths = {node: length for node, length in lengths.items() if math.isfinite(length)}
    if len(lengths) < LEAST_REPLIES:
        return
    size = update_norm(dict.fromkeys(before, np.zeros(())), before)
    *_, second, first = sorted(lengths.values())
    for node, length in lengths.items():
        longest = second if length == first else first
        if length > max(ratio * longest, LEAST_SHARE * size, least):
            yield (
                node,
                f"has length {length:.6g}, more than server.max_update_ratio = {ratio:g} times the longest of the "
                f"others ({longest:.6g})",
            )


def _is_below_zero(array: npt.NDArray[Any]) -> bool:
    return bool(array.size) and bool(array.min() < 0)


def _arrays_of(reply: Message, name: str, like: NamedArrays) -> NamedArrays | None:
    """Return the arrays of a reply; None if they cannot be read, of which others make an error."""
    if reply.has_error():
        return None
    try:
        record = reply.content[name]
        if not isinstance(record, ArrayRecord):
            return None
        arrays = protocol.arrays_like(record, protocol.layout_of(like))
    except Exception:  # whatever a stranger has written
        return None
    return arrays
