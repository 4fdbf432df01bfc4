"""One step of training before any run: an error of the user's own code is told with its file and line."""

import dataclasses

from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.rng import SERVER
from fedssl.core.slots import Scope
from fedssl.core.user_code import naming_user_code
from fedssl.data.federation import Federation
from fedssl.data.shard import Shard
from fedssl.exchange import protocol
from fedssl.exchange.initial_state import initial_state
from fedssl.experiment.experiment import Experiment, PhasePlan
from fedssl.server.carry_over import check_network, last_network
from fedssl.training.learn import learn
from fedssl.training.recipe import Recipe

MOST_IMAGES = 8
"""A trial step has at most this many labeled images, so that it is quick for large batches, too."""

LEAVE_OUT = "--no-step leaves this trial out"


def try_one_step(experiment: Experiment, federation: Federation) -> None:
    """Train the smallest client for one step in each phase, and the server if it trains; write nothing.

    Args:
        experiment: The experiment, whose clients have no private data.
        federation: The federation that it describes.

    Raises:
        InputError: The step raised an error. The message names the line of the user's code that the error passed last.
    """
    client, spec = _smallest_client(federation), federation.data.spec
    shard = federation.shard(client)
    for number, phase in enumerate(experiment.plans):
        where = f"phases[{number}]: " if experiment.phases else ""
        with naming_user_code(f"{where}a trial step of client {client}", LEAVE_OUT):
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
            _take_step(phase, phase.recipe, network, shard, client, sent, previous)
        if phase.server_trains:
            with naming_user_code(f"{where}a trial step of the server", LEAVE_OUT):
                part = phase.method.labeled_part(network)
                _take_step(phase, phase.server_recipe, part, federation.server_shard(), SERVER)


def _smallest_client(federation: Federation) -> int:
    """Return the client with the fewest images among those with labels; among all with images if none has labels."""
    sizes, labeled = federation.sizes, federation.labeled_sizes
    usable = labeled > 0 if labeled.any() else sizes > 0
    return min(usable.nonzero()[0].tolist(), key=lambda client: int(sizes[client]))


def _take_step(
    phase: PhasePlan,
    recipe: Recipe,
    network: nn.Module,
    shard: Shard,
    learner: int,
    sent: NamedArrays | None = None,
    previous: nn.Module | None = None,
) -> None:
    """Take one step as in the first round of a phase; the network changes.

    Args:
        phase: The phase.
        recipe: How the learner learns.
        network: The network.
        shard: The learner's examples.
        learner: The client's number, or `SERVER`.
        sent: State that the server sends beside the weights, by ``SLOT/NAME``.
        previous: The classifier of the last phase's network.
    """
    train = recipe.train
    size = min(train.batch_size, MOST_IMAGES)
    small = train.model_copy(update={"local_steps": 1, "local_epochs": None, "batch_size": size})
    found = {slot.name: protocol.slot_arrays(sent or {}, slot.name) for slot in recipe.slots()}
    learn(
        network,
        shard,
        dataclasses.replace(recipe, train=small),
        found,
        seed=phase.seed,
        server_round=1,
        client=learner,
        phase_round=1,
        phase_rounds=phase.num_rounds,
        previous=previous,
    )
