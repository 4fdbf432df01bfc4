"""What learning keeps at a client: from Flower's context and the request, and back."""

import math

import torch
from flwr.app import RecordDict

from fedssl.clients.weights import Weights
from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import State, Tensors
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


def kept_slots(
    recipe: Recipe, shared: NamedArrays, kept: RecordDict, phase: int
) -> dict[str, NamedArrays]:
    """Return what is kept of a recipe's slots, by their names; empty where nothing is.

    Args:
        recipe: Declares the slots.
        shared: What the server sent of ``server`` slots; a stock strategy of Flower's sends none.
        kept: What the client kept from its earlier rounds; what it kept in another phase is not used.
        phase: Phase of the run, from 0.
    """
    found: dict[str, NamedArrays] = {}
    for slot in recipe.slots():
        if slot.scope == "server":
            found[slot.name] = protocol.slot_arrays(shared, slot.name)
        elif slot.scope == "client":
            found[slot.name] = protocol.arrays_of(kept, _in_phase(phase, slot.name)) or {}
    return found


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
