"""Move a client's state: from the request and Flower's context into training, and back."""

import math
from typing import cast

import torch
from flwr.app import ConfigRecord, RecordDict

from fedssl.clients.kept_rounds import keep_round
from fedssl.clients.weights import Weights
from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import TrainingDiverged
from fedssl.core.slots import State, Tensors
from fedssl.exchange import protocol
from fedssl.exchange.checks import CALMER
from fedssl.exchange.protocol import Request
from fedssl.training.recipe import Recipe

PHASE = "phase-"
"""First part of the names of a context's records that hold state; the number of the state's phase follows."""

KEPT_IN = "kept-in"
"""Name, within a phase, of the record that holds the round in which the client kept its state."""


def refuse_divergence(weights: Weights, state: State) -> None:
    """Refuse weights and state that are not finite, before the client keeps or sends them.

    Raises:
        TrainingDiverged: A weight or a tensor of the state is not finite.
    """
    everything = (tensor for one in (weights.all, *state.values()) for tensor in one.values())
    floats = [tensor for tensor in everything if tensor.is_floating_point() and tensor.numel()]
    # One call checks thousands of small tensors. A norm can overflow, so such a tensor is checked by its elements.
    norms = torch._foreach_norm(floats) if floats else ()
    pairs = zip(floats, norms, strict=True)
    if not all(math.isfinite(norm) or bool(tensor.isfinite().all()) for tensor, norm in pairs):
        raise TrainingDiverged(f"training diverged: weights or state are not finite; {CALMER}")


def kept_slots(recipe: Recipe, request: Request, kept: RecordDict) -> dict[str, NamedArrays]:
    """Return the state that a recipe's slots begin a round with, by the slots' names; empty where there is none.

    Args:
        recipe: Declares the slots.
        request: Holds the state of ``server`` and ``phase`` slots; a stock server app of Flower's sends none.
        kept: Records that the client kept in its earlier rounds; state of another phase is not used, and neither is
            state that is older than ``train.max_state_age``.

    Raises:
        ValueError: The state of a ``phase`` slot is neither in the request nor kept; the server sends it again.
    """
    found: dict[str, NamedArrays] = {}
    is_old = _is_old(recipe, request, kept)
    for slot in recipe.slots():
        own = protocol.arrays_of(kept, _in_phase(request.phase, slot.name)) or {}
        if slot.scope == "server":
            found[slot.name] = protocol.slot_arrays(request.state, slot.name)
        elif slot.scope == "phase":
            found[slot.name] = protocol.slot_arrays(request.phase_state, slot.name) or own
            if not found[slot.name]:
                raise ValueError(f"the client lacks the phase's state {slot.name!r}")
        elif slot.scope == "client" and not (is_old and recipe.is_forgettable(slot)):
            found[slot.name] = own
    return found


def _is_old(recipe: Recipe, request: Request, kept: RecordDict) -> bool:
    """Return whether the client kept its state so long ago that it must forget it."""
    limit, record = recipe.train.max_state_age, kept.get(_in_phase(request.phase, KEPT_IN))
    if limit is None or not isinstance(record, ConfigRecord):
        return False
    return request.server_round - cast("int", record[protocol.ROUND]) > limit


def save_state(
    recipe: Recipe, weights: Weights, state: State, kept: RecordDict, request: Request
) -> None:
    """Keep ``client`` slots and private weights for the client's next round, in the records `kept`.

    The state of ``phase`` slots is kept if the request says so, because it will not be sent again.

    A phase begins with fresh state, at the client as at the server, so state of other phases is dropped. Private
    weights stay from phase to phase, as all weights do.

    What the client kept after earlier rounds stays beside it, as far as the server may go back to them.
    """
    phase = request.phase
    for name in list(kept):
        if name.startswith(PHASE) and not name.startswith(_in_phase(phase, "")):
            del kept[name]
    changing = recipe.slots_in("client")
    for slot in (*changing, *(recipe.slots_in("phase") if request.keeps_phase_state else ())):
        kept[_in_phase(phase, slot.name)] = protocol.to_record(state[slot.name])
    if changing and recipe.train.max_state_age is not None:
        kept[_in_phase(phase, KEPT_IN)] = ConfigRecord({protocol.ROUND: request.server_round})
    weights.keep_private(kept)
    keep_round(kept, request, fixed_records(recipe, phase))


def fixed_records(recipe: Recipe, phase: int) -> list[str]:
    """Return the names of the records that hold the state of ``phase`` slots, which does not change within a phase."""
    return [_in_phase(phase, slot.name) for slot in recipe.slots_in("phase")]


def shared_state(recipe: Recipe, state: State) -> Tensors:
    """Return the state that goes back to the server: the tensors of ``server`` slots, by ``SLOT/NAME``."""
    return {
        protocol.slot_key(slot.name, name): tensor
        for slot in recipe.slots_in("server")
        for name, tensor in state[slot.name].items()
    }


def _in_phase(phase: int, slot: str) -> str:
    return f"{PHASE}{phase}.{slot}"
