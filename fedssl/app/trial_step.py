"""One step of training before any run: an error of the user's own code is told with its file and line."""

import dataclasses
import math
from collections.abc import Collection, Mapping

import torch
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.core.numbers import CHOSEN
from fedssl.core.rng import SERVER
from fedssl.core.slots import Scope, State, Tensors
from fedssl.core.user_code import naming_user_code
from fedssl.data.federation import Federation
from fedssl.data.shard import Shard
from fedssl.exchange import protocol
from fedssl.exchange.initial_state import initial_state
from fedssl.experiment.experiment import Experiment, PhasePlan
from fedssl.server.carry_over import check_network, last_network
from fedssl.training.learn import fill_slots
from fedssl.training.loop import fit
from fedssl.training.recipe import Recipe

MOST_IMAGES = 8
"""A trial step has at most this many labeled images, so that it is quick for large batches, too."""

LEAVE_OUT = "--no-step leaves this trial out"

TRAIN_THEM = "call learner.descend with a loss that is computed from learner.network"
"""What a method does that takes steps of its own; the check of a loss tells all other methods what to do."""


def try_one_step(experiment: Experiment, federation: Federation) -> list[str]:
    """Train the smallest client for one step in each phase, and the server if it trains; write nothing.

    Args:
        experiment: The experiment, whose clients have no private data.
        federation: The federation that it describes.

    Returns:
        A sentence on each step that may rightly have changed no weight: the learner has no labels, or the state changed.

    Raises:
        InputError: The step raised an error; the message names the line of the user's code that the error passed last. Or
            the step had labels, and changed nothing; or its loss or a weight is not finite. Or the strategy weighs clients by
            a number that the method does not record.
    """
    client, spec = _smallest_client(federation), federation.data.spec
    shard, remarks = federation.shard(client), list[str]()
    for number, phase in enumerate(experiment.plans):
        where = f"phases[{number}]: " if experiment.phases else ""
        what = f"{where}a trial step of client {client}"
        with naming_user_code(what, LEAVE_OUT):
            network, last = check_network(phase, spec), last_network(phase, spec)
            previous = None if last is None else last.classifier
            scopes: tuple[Scope, ...] = ("server", "phase")
            sent = {
                name: array
                for scope in scopes
                for name, array in initial_state(
                    phase.recipe, network, spec, scope, previous
                ).items()
            }
            remarks += _take_step(what, phase, phase.recipe, network, shard, client, sent, previous)
        if phase.server_trains:
            what = f"{where}a trial step of the server"
            with naming_user_code(what, LEAVE_OUT):
                part, held = phase.method.labeled_part(network), federation.server_shard()
                remarks += _take_step(what, phase, phase.server_recipe, part, held, SERVER)
    return remarks


def _smallest_client(federation: Federation) -> int:
    """Return the client with the fewest images among those with labels; among all with images if none has labels."""
    sizes, labeled = federation.sizes, federation.labeled_sizes
    usable = labeled > 0 if labeled.any() else sizes > 0
    return min(usable.nonzero()[0].tolist(), key=lambda client: int(sizes[client]))


def _take_step(
    what: str,
    phase: PhasePlan,
    recipe: Recipe,
    network: nn.Module,
    shard: Shard,
    learner: int,
    sent: NamedArrays | None = None,
    previous: nn.Module | None = None,
) -> list[str]:
    """Take one step as in the first round of a phase; the network changes.

    Args:
        what: What messages call the step.
        phase: The phase.
        recipe: How the learner learns.
        network: The network.
        shard: The learner's examples.
        learner: The client's number, or `SERVER`.
        sent: State that the server sends beside the weights, by ``SLOT/NAME``.
        previous: The classifier of the last phase's network.

    Returns:
        As in `try_one_step`.

    Raises:
        InputError: The step had something to learn from, and changed neither a weight nor the state. Or its loss, or a
            weight after it, is not finite.
    """
    train = recipe.train
    size = min(train.batch_size, MOST_IMAGES)
    small = train.model_copy(update={"local_steps": 1, "local_epochs": None, "batch_size": size})
    found = {slot.name: protocol.slot_arrays(sent or {}, slot.name) for slot in recipe.slots()}
    state = fill_slots(recipe, network, shard, found)
    weights, kept = _copies(dict(network.named_parameters())), _copies(_tensors(state))
    report = fit(
        network,
        shard,
        dataclasses.replace(recipe, train=small),
        state,
        seed=phase.seed,
        server_round=1,
        client=learner,
        phase_round=1,
        phase_rounds=phase.num_rounds,
        previous=previous,
    )
    if report.num_steps:
        _refuse_not_finite(what, recipe.method.kind, report.loss, network)
        if learner != SERVER:
            _refuse_unknown_number(phase, report.numbers)
    # The learning rate may be 0 at the first step. Then no weight moves, but a gradient reaches some of them.
    is_reached = any(parameter.grad is not None for parameter in network.parameters())
    if is_reached or not report.num_steps or _changed(weights, dict(network.named_parameters())):
        return []
    has_labels = len(shard.labeled) > 0 or not recipe.method.views().labeled
    if has_labels and not _changed(kept, _tensors(state)):
        problem = f"the method {recipe.method.kind!r} changed no weight and no state"
        raise InputError(what, problem, f"{TRAIN_THEM}; {LEAVE_OUT}")
    return [f"{what} changed no weight" + ("" if has_labels else ": it had no labels")]


def _refuse_unknown_number(phase: PhasePlan, numbers: Collection[str]) -> None:
    """Raise `InputError` if clients are weighed by a number that the method does not record."""
    weight = getattr(phase.strategy, "weight", "")
    name = weight.removeprefix(CHOSEN)
    if name != weight and name not in numbers:
        recorded = f"it records {', '.join(sorted(numbers))}" if numbers else "it records none"
        raise InputError(
            "strategy.weight",
            f"is {weight!r}, but the method {phase.method.kind!r} records no number {name!r}; {recorded}",
            f"take another weight; {LEAVE_OUT}",
        )


def _refuse_not_finite(what: str, kind: str, loss: float, network: nn.Module) -> None:
    """Raise `InputError` if the loss of a step, or a weight after it, is not finite: no later step could mend the weights."""
    problem = f"the loss of the method {kind!r} is {loss}"
    if math.isfinite(loss):
        lost = [name for name, p in network.named_parameters() if not p.isfinite().all()]
        if not lost:
            return
        problem = f"the loss of the method {kind!r} is {loss:g}, but it left {lost[0]} not finite"
    remedy = "look for a logarithm, a root or a quotient of 0"
    raise InputError(what, problem, f"{remedy}; {LEAVE_OUT}")


def _tensors(state: State) -> Tensors:
    return {f"{slot}/{name}": each for slot, own in state.items() for name, each in own.items()}


def _copies(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _changed(before: Tensors, now: Mapping[str, torch.Tensor]) -> bool:
    """Return whether any tensor has other values or another shape than before."""
    return before.keys() != now.keys() or any(
        not torch.equal(tensor, now[name]) for name, tensor in before.items()
    )
