"""What a process keeps from one client to the next: the parsed experiment, one network, and its optimizers."""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from fedssl.clients.local_data import simulated_federation
from fedssl.clients.weights import Weights
from fedssl.core.processes import keep_freed_memory
from fedssl.data.terms import Terms
from fedssl.experiment.client_settings import ClientSettings
from fedssl.training.optimizer_set import OptimizerSet
from fedssl.training.recipe import Recipe


@dataclass(frozen=True)
class Resident:
    """The parts of a process that every client of a phase uses in turn.

    Args:
        experiment: The experiment as it stands in the phase.
        recipe: How the experiment's clients learn.
        network: The network; each client overwrites all its weights before it trains.
        weights: The network's weights.
        optimizers: Optimizers of these weights; each client resets them before it trains.
        previous: The classifier of the last phase's network; None for methods without ``phase`` slots, or in the first phase.
    """

    experiment: ClientSettings
    recipe: Recipe
    network: nn.Module
    weights: Weights
    optimizers: OptimizerSet
    previous: nn.Module | None = None


def resident(text: str, device: str, terms: Terms | None = None) -> Resident:
    """Return the one resident that this process has for an experiment; build it if there is none yet.

    Args:
        text: The experiment as JSON.
        device: Device of the network.
        terms: What the images of all clients have in common; None: take it from the experiment's data.

    Raises:
        InputError: The experiment is wrong, or names a module that this client does not allow.
    """
    # Parsing refuses a module that this client does not allow, even if the resident was built when it was allowed.
    ClientSettings.from_json(text)
    return _resident(text, device, terms)


@functools.lru_cache(maxsize=2)
def _resident(text: str, device: str, terms: Terms | None) -> Resident:
    keep_freed_memory()
    experiment = ClientSettings.from_json(text)
    recipe = experiment.recipe
    spec = simulated_federation(experiment).data.spec if terms is None else terms.spec
    network = experiment.build_network(spec, torch.device(device))
    previous = None
    if experiment.previous is not None and recipe.slots_in("phase"):
        previous = experiment.previous.build(spec, experiment.seed, device).classifier
    weights = Weights(recipe.method, network)
    return Resident(experiment, recipe, network, weights, recipe.optimizers(network), previous)
