"""What learning keeps at a client: from Flower's context and the request, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import RecordDict
from torch import nn

from fedssl import protocol
from fedssl.data.shard import Shard
from fedssl.methods.base import Method
from fedssl.slots import State, Tensors
from fedssl.training import Recipe

PRIVATE = "private"
"""Begins the name of the record that holds the weights a method does not share."""

PHASE = "phase-"
"""Begins the names of records that hold state, which belongs to its phase."""


def private_weights(method: Method, network: nn.Module) -> Tensors:
    """Return a copy of the weights that a method does not share."""
    weights = network.state_dict().items()
    return {name: tensor.clone() for name, tensor in weights if not method.is_shared(name)}


def load_weights(
    method: Method,
    network: nn.Module,
    arrays: Mapping[str, Any],
    initial: Tensors,
    kept: RecordDict,
) -> None:
    """Overwrite every weight of a network: shared ones with the server's, private ones with the client's own.

    The network may last have served another client, of which nothing must stay.

    Args:
        method: Says which weights are shared.
        network: Written to.
        arrays: What the server sent.
        initial: Private weights of a client in its first round.
        kept: What the client kept from its earlier rounds.

    Raises:
        ValueError: The server sent too little, or other shapes.
    """
    shared = [name for name in network.state_dict() if method.is_shared(name)]
    protocol.load_network(network, arrays, shared)
    record = kept.array_records.get(_private(method))
    if record is not None:
        protocol.load_network(network, protocol.from_record(record), initial)
    elif initial:
        network.load_state_dict(initial, strict=False)


def refuse_divergence(network: nn.Module, state: State) -> None:
    """Raise `FloatingPointError` if training left anything that is not finite, before it is kept or sent."""
    tensors = [
        *network.state_dict().values(),
        *(t for slot in state.values() for t in slot.values()),
    ]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise FloatingPointError(
            "training diverged: weights or state are not finite; lower train.lr"
        )


def load_state(
    recipe: Recipe,
    network: nn.Module,
    shard: Shard,
    shared: Mapping[str, Any],
    kept: RecordDict,
    phase: int,
) -> State:
    """Fill every slot of a recipe.

    Args:
        recipe: Declares the slots.
        network: Holds the weights of the round's start.
        shard: The client's examples.
        shared: What the server sent of ``server`` slots.
        kept: What the client kept from its earlier rounds; what it kept in another phase is not used.
        phase: Of the run, from 0.
    """
    device = shard.images.device
    state: State = {}
    for slot in recipe.slots():
        record = kept.array_records.get(_in_phase(phase, slot.name))
        found: Mapping[str, Any] = {}
        if slot.scope == "server":
            found = protocol.slot_arrays(shared, slot.name)
        elif slot.scope == "client" and record is not None:
            found = protocol.from_record(record)
        if found:
            state[slot.name] = _tensors(found, device)
        else:
            # A server that knows nothing of state, such as a stock strategy's, sends none: it begins as it would there.
            held = None if slot.scope == "server" else shard
            state[slot.name] = recipe.init_slot(slot.name, network, shard.spec, held)
    return state


def save_state(
    recipe: Recipe, network: nn.Module, state: State, kept: RecordDict, phase: int
) -> None:
    """Keep ``client`` slots and private weights for the client's next round, in place.

    A phase begins with fresh state, at the client as at the server: what an earlier one left is dropped. Private
    weights are weights, and go on.
    """
    for name in list(kept.array_records):
        if name.startswith(PHASE) and not name.startswith(_in_phase(phase, "")):
            del kept[name]
    for slot in recipe.slots():
        if slot.scope == "client":
            kept[_in_phase(phase, slot.name)] = protocol.to_record(state[slot.name])
    private = private_weights(recipe.method, network)
    if private:
        kept[_private(recipe.method)] = protocol.to_record(private)


def shared_weights(method: Method, network: nn.Module) -> Tensors:
    """Return the weights that go back to the server."""
    return {k: v for k, v in network.state_dict().items() if method.is_shared(k)}


def shared_state(recipe: Recipe, state: State) -> Tensors:
    """Return what goes back to the server of ``server`` slots, by ``SLOT/NAME``."""
    return {
        protocol.slot_key(slot.name, name): tensor
        for slot in recipe.slots()
        if slot.scope == "server"
        for name, tensor in state[slot.name].items()
    }


def _in_phase(phase: int, slot: str) -> str:
    return f"{PHASE}{phase}.{slot}"


def _private(method: Method) -> str:
    return f"{PRIVATE}.{method.kind}"


def _tensors(arrays: Mapping[str, Any], device: torch.device) -> Tensors:
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
