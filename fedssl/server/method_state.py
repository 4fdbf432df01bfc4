"""The state that methods keep at the server: it travels beside the weights and is always a plain mean.

A strategy may average weights by any rule, or take an optimizer's step with them. Either can spoil statistics: momentum
can make a probability negative, for example, and then the state is no distribution. So strategies never see the state.
"""

from collections.abc import Iterable, Mapping

from flwr.app import Message
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.data.shard import ImageSpec
from fedssl.exchange import protocol
from fedssl.exchange.reduction import Sum
from fedssl.exchange.sums import cohort_mean
from fedssl.methods.base import Fresh
from fedssl.training.loop import Recipe


def initial_state(recipe: Recipe, network: nn.Module, spec: ImageSpec) -> NamedArrays:
    """Return the method's state at the server when a phase begins, by ``SLOT/NAME``."""
    fresh = Fresh(network, spec, shard=None)
    return {
        protocol.slot_key(slot.name, name): tensor.numpy()
        for slot in recipe.slots()
        if slot.scope == "server"
        for name, tensor in recipe.init_slot(slot.name, fresh).items()
    }


def attach_state(arrays: NamedArrays, messages: Iterable[Message]) -> None:
    """Put the method's state into a round's requests, in place; do nothing if there is no state."""
    if not arrays:
        return
    record = protocol.to_record(arrays)
    done: set[int] = set()
    for message in messages:
        if id(message.content) not in done:  # many messages share one content
            message.content[protocol.STATE] = record
            done.add(id(message.content))


def merge_state(arrays: NamedArrays, part: Mapping[str, Sum]) -> NamedArrays:
    """Return sum n_k s_k / sum n_k over a round's replies, the mean of their states; the old state if none was summed.

    Args:
        arrays: The old state, by ``SLOT/NAME``.
        part: The round's sums, by record.
    """
    sums, weight = part.get(protocol.STATE, (None, 0.0))
    return arrays if sums is None else cohort_mean(sums, weight, arrays)
