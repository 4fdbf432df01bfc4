"""Refuse replies that are far from all others: a deployed cohort's replies are compared before any of them is averaged.

One wild reply can move a mean anywhere. Honest clients that start from such weights diverge, and the run ends. In a
deployment, all replies have arrived before the first is averaged, so they can be compared. In a simulation, workers sum
their replies as they come, and nothing is compared: these workers are ours, and none of their replies lies.
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
"""An update shorter than this share of the sent weights' length is no outlier; clients without labels hardly move."""

LEAST_REPLIES = 3
"""Fewer replies than this are not compared; with two replies, nobody can say which is the outlier."""


def without_outliers(
    sent: Sequence[Message],
    replies: Sequence[Message],
    carried: Mapping[str, NamedArrays],
    ratio: float,
) -> Iterator[Message]:
    """Yield the replies in their order, with an error in place of each reply that is far from all others.

    An update of the weights is measured as a whole; a method's state is measured array by array. If an array of the
    state is nowhere negative, neither as it was sent nor in the other replies, it is a count or a share. Then no single
    reply may have negative values in it.

    Args:
        sent: The requests of the round.
        replies: The replies of the round, from anybody. A reply that cannot be read is passed on, and refused later.
        carried: The arrays that were sent, by record: the global arrays, and the state of the method.
        ratio: An update may be this many times as long as the longest update of the others. So two clients that send
            equally long wild updates are not refused.
    """
    requests = {message.metadata.dst_node_id: message for message in sent}
    flaws: dict[int, str] = {}
    # Read the arrays of all replies that can be read: record -> node -> arrays.
    read = {
        name: {
            reply.metadata.src_node_id: arrays
            for reply in replies
            if (arrays := _arrays_of(reply, name, received)) is not None
        }
        for name, received in carried.items()
        if received
    }
    # Compare the updates of the weights, as a whole.
    for node, reason in _long(read.get(protocol.ARRAYS, {}), carried[protocol.ARRAYS], ratio, 0.0):
        flaws[node] = f"the reply's update {reason}"
    # Compare the method's state, array by array; its sign first.
    state = read.get(protocol.STATE, {})
    for name, before in carried.get(protocol.STATE, {}).items():
        own = {node: {name: arrays[name]} for node, arrays in state.items()}
        below = [node for node, arrays in own.items() if _is_below_zero(arrays[name])]
        if len(own) >= LEAST_REPLIES and len(below) == 1 and not _is_below_zero(before):
            flaws[below[0]] = f"the reply's state {name!r} is negative, but no other reply's is"
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
    """Yield (node, reason) for each reply whose update is too long, compared with the longest update of the others.

    Args:
        replies: Arrays by node.
        before: The arrays that were sent.
        ratio: See `without_outliers`.
        least: An update of at most this length is never too long.
    """
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
