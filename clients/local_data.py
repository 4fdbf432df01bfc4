"""From a node's config to this client's data."""

import functools
from dataclasses import dataclass

from flwr.app import Context

from fedssl import protocol
from fedssl.config import Experiment
from fedssl.data.federation import Deal, Federation, draw_federation
from fedssl.data.sources.base import Source


@dataclass(frozen=True)
class LocalData:
    """One client of a simulated federation.

    Args:
        client: Its number.
        federation: The federation it is part of; the same in every process, for it derives from the seed.
    """

    client: int
    federation: Federation


def local_data(experiment: Experiment, context: Context) -> LocalData:
    """Return the data of the node that a context belongs to.

    Raises:
        ValueError: The node has no ``partition-id``, or one beyond the experiment's clients.
    """
    number = context.node_config.get(protocol.PARTITION_ID)
    clients = experiment.federation.clients
    if not isinstance(number, int) or not 0 <= number < clients:
        raise ValueError(
            f"node config has {protocol.PARTITION_ID} = {number!r}; the experiment has {clients} clients"
        )
    return LocalData(number, simulated_federation(experiment))


def simulated_federation(experiment: Experiment) -> Federation:
    """Return the federation an experiment describes; drawn once a process."""
    return _draw(experiment.data, experiment.federation.deal, experiment.seed)


@functools.lru_cache(maxsize=2)
def _draw(data: Source, deal: Deal, seed: int) -> Federation:
    return draw_federation(data.dataset(seed), deal, seed)
