"""The state that methods keep at the server: it travels beside the weights and is merged as its slot says.

A strategy may average weights by any rule, or take an optimizer's step with them. Either can spoil statistics: momentum
can make a probability negative, for example, and then the state is no distribution. So strategies never see the state.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Message

from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import Slot
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.exchange.reduction import Sum
from fedssl.exchange.sums import cohort_mean, population_mean


def by_record(slots: Sequence[Slot], state: NamedArrays) -> dict[str, NamedArrays]:
    """Return the ``server`` state by the record that it travels in, which depends on the weight of each slot's mean.

    Args:
        slots: The ``server`` slots.
        state: Their state, by ``SLOT/NAME``.
    """
    weight_of = {slot.name: slot.merge.weight for slot in slots}
    return {
        record: {
            name: array
            for name, array in state.items()
            if weight_of[protocol.slot_of(name)] == weight
        }
        for weight, record in protocol.STATE_RECORDS.items()
    }


def attach_state(records: Mapping[str, NamedArrays], messages: Iterable[Message]) -> None:
    """Put the state into a round's requests, in place; a record without arrays is left out."""
    encoded = {name: protocol.to_record(arrays) for name, arrays in records.items() if arrays}
    done: set[int] = set()
    for message in messages:
        if id(message.content) not in done:  # many messages share one content
            for name, record in encoded.items():
                message.content[name] = record
            done.add(id(message.content))


def merge_state(
    slots: Sequence[Slot], state: NamedArrays, sums: Mapping[str, Sum], census: Census
) -> NamedArrays:
    """Return the state after a round, merged as each slot's `Merge` says; the old state where nothing was summed.

    Args:
        slots: The ``server`` slots.
        state: The old state, by ``SLOT/NAME``.
        sums: The round's sums, by record.
        census: The clients; it says how much all K of them weigh together.
    """
    merge_of = {slot.name: slot.merge for slot in slots}
    population = {"examples": float(np.sum(census.num_examples)), "uniform": float(len(census))}
    merged = dict(state)
    for name, old in state.items():
        merge = merge_of[protocol.slot_of(name)]
        total, weight = sums.get(protocol.STATE_RECORDS[merge.weight], (None, 0.0))
        if total is None:
            continue
        if merge.over == "cohort":
            merged |= cohort_mean(total, weight, {name: old})
        else:
            merged |= population_mean(total, weight, population[merge.weight], {name: old})
    return merged
