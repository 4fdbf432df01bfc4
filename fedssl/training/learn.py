"""One round of learning with what is kept: every slot is filled, the network trained. Clients and the server learn by it."""

from collections.abc import Mapping

import torch
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import State
from fedssl.data.shard import Shard
from fedssl.training.loop import FitReport, Recipe, fit
from fedssl.training.optimizer_set import OptimizerSet


def learn(
    network: nn.Module,
    shard: Shard,
    recipe: Recipe,
    found: Mapping[str, NamedArrays],
    *,
    seed: int,
    server_round: int,
    client: int,
    phase_round: int,
    phase_rounds: int,
    optimizers: OptimizerSet | None = None,
) -> tuple[FitReport, State]:
    """Fill every slot of a recipe, train, and return what came of both.

    Args:
        network: Holds the weights of the round's start; holds the trained ones afterwards.
        shard: The learner's examples, on the network's device.
        recipe: How to learn.
        found: What was kept of slots, by their names; a slot that is not among it, or is empty there, is made anew.
        seed, server_round, client, phase_round, phase_rounds, optimizers: As in `fit`.
    """
    state = fill_slots(recipe, network, shard, found)
    report = fit(
        network,
        shard,
        recipe,
        state,
        seed=seed,
        server_round=server_round,
        client=client,
        phase_round=phase_round,
        phase_rounds=phase_rounds,
        optimizers=optimizers,
    )
    return report, state


def fill_slots(
    recipe: Recipe, network: nn.Module, shard: Shard, found: Mapping[str, NamedArrays]
) -> State:
    """Return the state of a round: what was kept of each slot, or its first content.

    Args:
        recipe: Declares the slots.
        network: Holds the weights of the round's start.
        shard: The learner's examples.
        found: What was kept of slots, by their names.
    """
    state: State = {}
    for slot in recipe.slots():
        kept = found.get(slot.name)
        if kept:
            state[slot.name] = {
                name: torch.from_numpy(array.copy()).to(shard.images.device)
                for name, array in kept.items()
            }
        else:
            # A slot of the server's begins for all clients alike, so that it sees nobody's examples.
            held = None if slot.scope == "server" else shard
            state[slot.name] = recipe.init_slot(slot.name, network, shard.spec, held)
    return state
