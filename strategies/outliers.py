"""Updates that are far longer than everybody else's: a deployed cohort's are compared before any of them is averaged.

A mean follows one wild reply wherever it goes, and from weights that lie far off honest clients diverge, which ends the run.
Replies of a deployment are all there when the first is averaged, so that they can be compared with each other. Workers of a
simulation sum theirs as they come; they are ours, and nobody there lies.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message

from fedssl import protocol
from fedssl.metrics.drift import update_norm
from fedssl.record.rows import NamedArrays

LEAST_SHARE = 0.5
"""An update that is shorter than this share of the model's own length is none of these: where few clients hold labels, the others
hardly move at all."""


def without_outliers(
    sent: Sequence[Message], replies: Sequence[Message], received: NamedArrays, ratio: float
) -> Iterator[Message]:
    """Yield replies in their order, an error in place of each whose update is far longer than all others.

    Args:
        sent: The requests that they answer.
        replies: Of one round, from anybody; what cannot be read is passed on, for others to refuse.
        received: The global arrays that were sent.
        ratio: How many times as long as the longest of the others an update may be. Two that lie alike are each other's measure.
    """
    requests = {message.metadata.dst_node_id: message for message in sent}
    lengths = {
        reply.metadata.src_node_id: length
        for reply in replies
        if (length := _length_of(reply, received)) is not None
    }
    ascending = sorted(lengths.values())
    least = LEAST_SHARE * update_norm(dict.fromkeys(received, np.zeros(())), received)
    for reply in replies:
        node = reply.metadata.src_node_id
        length = lengths.get(node)
        if length is None or len(ascending) < 2 or node not in requests:
            yield reply
            continue
        longest = ascending[-2] if length == ascending[-1] else ascending[-1]
        if length <= max(ratio * longest, least):
            yield reply
            continue
        reason = (
            f"refused: the reply's update has length {length:.6g}, more than server.max_update_ratio = {ratio:g} times "
            f"the longest of the others ({longest:.6g})"
        )
        yield protocol.error_reply(requests[node], reason)


def _length_of(reply: Message, received: NamedArrays) -> float | None:
    """Return the L2 norm of a reply's update; None if it cannot be read or is not finite, of which others make an error."""
    if reply.has_error():
        return None
    try:
        record = reply.content[protocol.ARRAYS]
        if not isinstance(record, ArrayRecord):
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            length = update_norm(
                received, protocol.arrays_like(record, protocol.layout_of(received))
            )
    except Exception:  # whatever a stranger has written
        return None
    return length if math.isfinite(length) else None
