"""What learning keeps at a client: from Flower's context and the request, and back."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import RecordDict
from torch import nn

from fedssl.clients.weights import Weights
from fedssl.core.slots import State, Tensors
from fedssl.data.shard import Shard
from fedssl.exchange import protocol
from fedssl.training.loop import Recipe

PHASE = "phase-"
"""Begins the names of records that hold state, which belongs to its phase."""


def refuse_divergence(weights: Weights, state: State) -> None:
    """Raise `FloatingPointError` if training left anything that is not finite, before it is kept or sent."""
    everything = (tensor for one in (weights.all, *state.values()) for tensor in one.values())
    floats = [tensor for tensor in everything if tensor.is_floating_point() and tensor.numel()]
    # One call for thousands of small tensors; where squares overflow, it is looked at again.
    norms = torch._foreach_norm(floats) if floats else ()
    pairs = zip(floats, norms, strict=True)
    if not all(math.isfinite(norm) or bool(tensor.isfinite().all()) for tensor, norm in pairs):
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
        found: Mapping[str, Any] = {}
        if slot.scope == "server":
            found = protocol.slot_arrays(shared, slot.name)
        elif slot.scope == "client":
            found = protocol.arrays_of(kept, _in_phase(phase, slot.name)) or {}
        if found:
            state[slot.name] = _tensors(found, device)
        else:
            # A server that knows nothing of state, such as a stock strategy's, sends none: it begins as it would there.
            held = None if slot.scope == "server" else shard
            state[slot.name] = recipe.init_slot(slot.name, network, shard.spec, held)
    return state


def save_state(
    recipe: Recipe, weights: Weights, state: State, kept: RecordDict, phase: int
) -> None:
    """Keep ``client`` slots and private weights for the client's next round, in place.

    A phase begins with fresh state, at the client as at the server: what an earlier one left is dropped. Private
    weights are weights, and go on.
    """
    for name in list(kept):
        if name.startswith(PHASE) and not name.startswith(_in_phase(phase, "")):
            del kept[name]
    for slot in recipe.slots():
        if slot.scope == "client":
            kept[_in_phase(phase, slot.name)] = protocol.to_record(state[slot.name])
    weights.keep_private(kept)


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


def _tensors(arrays: Mapping[str, Any], device: torch.device) -> Tensors:
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
