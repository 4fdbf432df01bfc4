"""What stays in a process from client to client: the experiment as parsed, one network, its optimizers."""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from fedssl.clients.local_data import simulated_federation
from fedssl.clients.weights import Weights
from fedssl.data.terms import Terms
from fedssl.experiment.client_settings import ClientSettings
from fedssl.training.loop import Recipe
from fedssl.training.network import build_network
from fedssl.training.optimizer_set import OptimizerSet


@dataclass(frozen=True)
class Resident:
    """What every client of a phase uses in turn.

    Args:
        experiment: As it stands in the phase.
        recipe: How its clients learn.
        network: Whoever uses it overwrites all its weights.
        weights: Of the network.
        optimizers: Over them; whoever uses them begins anew.
    """

    experiment: ClientSettings
    recipe: Recipe
    network: nn.Module
    weights: Weights
    optimizers: OptimizerSet


def resident(text: str, device: str, terms: Terms | None = None) -> Resident:
    """Return this process's one resident of an experiment.

    Args:
        text: The experiment as JSON.
        device: Where the network lives.
        terms: What the images of all clients have in common; None: what the experiment's data says.

    Raises:
        InputError: The experiment is wrong, or names a module that this client does not allow.
    """
    ClientSettings.from_json(
        text
    )  # refuses such a module even if the resident was built under another trust
    return _resident(text, device, terms)


@functools.lru_cache(maxsize=2)
def _resident(text: str, device: str, terms: Terms | None) -> Resident:
    experiment = ClientSettings.from_json(text)
    recipe = experiment.recipe
    spec = simulated_federation(experiment).data.spec if terms is None else terms.spec
    network = build_network(
        experiment.model, experiment.method, spec, experiment.seed, torch.device(device)
    )
    optimizers = OptimizerSet(recipe.method.optimizers(network, recipe.train.make_optimizer))
    return Resident(experiment, recipe, network, Weights(recipe.method, network), optimizers)
