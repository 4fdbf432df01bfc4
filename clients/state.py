"""Move a client's state: from the request and Flower's context into training, and back."""

import math

import torch
from flwr.app import RecordDict

from fedssl.clients.weights import Weights
from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import State, Tensors
from fedssl.exchange import protocol
from fedssl.training.recipe import Recipe

PHASE = "phase-"
"""First part of the names of a context's records that hold state; the number of the state's phase follows."""


def refuse_divergence(weights: Weights, state: State) -> None:
    """Refuse weights and state that are not finite, before the client keeps or sends them.

    Raises:
        FloatingPointError: A weight or a tensor of the state is not finite.
    """
    everything = (tensor for one in (weights.all, *state.values()) for tensor in one.values())
    floats = [tensor for tensor in everything if tensor.is_floating_point() and tensor.numel()]
    # One call checks thousands of small tensors. A norm can overflow, so such a tensor is checked by its elements.
    norms = torch._foreach_norm(floats) if floats else ()
    pairs = zip(floats, norms, strict=True)
    if not all(math.isfinite(norm) or bool(tensor.isfinite().all()) for tensor, norm in pairs):
        raise FloatingPointError(
            "training diverged: weights or state are not finite; lower train.lr"
        )


def kept_slots(
    recipe: Recipe, shared: NamedArrays, kept: RecordDict, phase: int
) -> dict[str, NamedArrays]:
    """Return the state that a recipe's slots begin a round with, by the slots' names; empty where there is none.

    Args:
        recipe: Declares the slots.
        shared: State of the ``server`` slots that the server sent; a stock server app of Flower's sends none.
        kept: Records that the client kept in its earlier rounds; state of another phase is not used.
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
    """Keep ``client`` slots and private weights for the client's next round, in the records `kept`.

    A phase begins with fresh state, at the client as at the server, so state of other phases is dropped. Private
    weights stay from phase to phase, as all weights do.
    """
    for name in list(kept):
        if name.startswith(PHASE) and not name.startswith(_in_phase(phase, "")):
            del kept[name]
    for slot in recipe.slots():
        if slot.scope == "client":
            kept[_in_phase(phase, slot.name)] = protocol.to_record(state[slot.name])
    weights.keep_private(kept)


def shared_state(recipe: Recipe, state: State) -> Tensors:
    """Return the state that goes back to the server: the tensors of ``server`` slots, by ``SLOT/NAME``."""
    return {
        protocol.slot_key(slot.name, name): tensor
        for slot in recipe.slots()
        if slot.scope == "server"
        for name, tensor in state[slot.name].items()
    }


def _in_phase(phase: int, slot: str) -> str:
    return f"{PHASE}{phase}.{slot}"
