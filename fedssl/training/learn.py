"""One round of learning from kept state, for clients and for the server: fill every slot, then train the network."""

from collections.abc import Mapping

import torch
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import State, Tensors
from fedssl.data.shard import Shard
from fedssl.methods.base import Fresh
from fedssl.training.loop import FitReport, fit
from fedssl.training.optimizer_set import OptimizerSet
from fedssl.training.recipe import Recipe


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
    extra: Mapping[str, Tensors] | None = None,
    previous: nn.Module | None = None,
) -> tuple[FitReport, State]:
    """Fill every slot of a recipe, train the network, and return the report and the state after training.

    Args:
        network: Holds the weights at the round's start; afterwards it holds the trained weights.
        shard: The learner's examples, on the network's device.
        recipe: The method, the optimization and the augmentations.
        found: Kept contents of slots, by the slots' names. A slot that is missing or empty here is made anew.
        seed, server_round, client, phase_round, phase_rounds, optimizers, extra, previous: As in `fit`.

    Returns:
        The report of `fit`, and the contents of every slot after the last step.
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
        extra=extra,
        previous=previous,
    )
    return report, state


def fill_slots(
    recipe: Recipe, network: nn.Module, shard: Shard, found: Mapping[str, NamedArrays]
) -> State:
    """Return the state for a round: the kept content of each slot, or the slot's first content if none is kept.

    Args:
        recipe: Declares the slots.
        network: Holds the weights at the round's start.
        shard: The learner's examples.
        found: Kept contents of slots, by the slots' names.
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
            # Such a slot starts with the same content at every client, so it is made without any client's examples.
            held = None if slot.scope in ("server", "phase") else shard.without_truth()
            state[slot.name] = recipe.init_slot(slot.name, Fresh(network, shard.spec, held))
    return state
