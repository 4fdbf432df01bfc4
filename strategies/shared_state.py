"""The state that methods keep at the server: it travels beside the weights and is always a plain mean.

A strategy may average weights by any rule, or take an optimizer's step with them. Statistics survive none of that: a
distribution that momentum has carried past zero is none. So strategies never see them.
"""

from collections.abc import Iterable

from flwr.app import Message
from torch import nn

from fedssl import protocol
from fedssl.aggregation import WeightedSum, cohort_mean
from fedssl.data.shard import ImageSpec
from fedssl.training import Recipe


def initial_state(recipe: Recipe, network: nn.Module, spec: ImageSpec) -> protocol.NamedArrays:
    """Return what the server keeps of a method at the beginning of a phase, by ``SLOT/NAME``."""
    return {
        protocol.slot_key(slot.name, name): tensor.numpy()
        for slot in recipe.slots()
        if slot.scope == "server"
        for name, tensor in recipe.init_slot(slot.name, network, spec, None).items()
    }


class SharedState:
    """One round of it: attached to the requests, detached from the replies, averaged by images.

    Args:
        arrays: What it was, by ``SLOT/NAME``; empty for methods that keep none.
        messages: The round's requests, to which it is attached in place.
    """

    def __init__(self, arrays: protocol.NamedArrays, messages: Iterable[Message]) -> None:
        self.arrays = arrays
        self._places = {m.metadata.dst_node_id: place for place, m in enumerate(messages)}
        self._missing = dict(self._places)
        self._sums = WeightedSum(max(1, len(self._places)))
        if arrays:
            record = protocol.to_record(arrays)
            for message in messages:  # many share one content, which is then set again to the same
                message.content[protocol.STATE] = record

    def detach(self, reply: Message) -> Message:
        """Take the state out of a usable reply, and return the reply as strategies want it."""
        if not self.arrays:
            return reply
        place = self._missing.pop(reply.metadata.src_node_id)
        state = protocol.from_record(reply.content.array_records[protocol.STATE])
        self._sums.add(place, state, protocol.metrics_of(reply)[protocol.NUM_EXAMPLES])
        return protocol.without_state(reply)

    def merged(self) -> protocol.NamedArrays:
        """Return sum n_k s_k / sum n_k over the replies; the old state if there was none."""
        if not self.arrays:
            return self.arrays
        for place in self._missing.values():
            self._sums.skip(place)
        sums, total_weight = self._sums.result()
        return self.arrays if sums is None else cohort_mean(sums, total_weight, self.arrays)
