"""The parts of a phase that stay the same over its rounds, as the server needs them."""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedssl.core.slots import Slot
from fedssl.exchange.census import Census
from fedssl.experiment.experiment import PhasePlan
from fedssl.experiment.system.devices import Floats
from fedssl.strategies.base import SeededStrategy
from fedssl.strategies.by_sums import SumStrategy


@dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Args:
        index: Number of the phase, from 0.
        experiment: The experiment as it stands in the phase.
        text: The same experiment as JSON, as it travels to clients.
        network: A network to write to at any time.
        strategy: The Flower strategy that runs the phase.
        work: Work of each client in a round, in images that one network trains on, (K,).
        first_work: Work that each client has beside this in its first round of the phase, (K,).
    """

    index: int
    experiment: PhasePlan
    text: str
    network: nn.Module
    strategy: Strategy
    work: Floats
    first_work: Floats

    @property
    def by_sums(self) -> bool:
        """Whether the strategy needs only weighted sums of the replies, which workers make."""
        return isinstance(self.strategy, SumStrategy)

    @property
    def is_ours(self) -> bool:
        """Whether the strategy knows which arrays are buffers; a strategy of Flower's does not."""
        return isinstance(self.strategy, SeededStrategy)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots whose state the server merges."""
        return self.experiment.recipe.slots_in("server")

    @property
    def buffers(self) -> frozenset[str]:
        """Names of the network's arrays that no optimizer may move: statistics and counts."""
        return frozenset(name for name, _ in self.network.named_buffers())

    def longest_first(self, messages: Sequence[Message], census: Census) -> list[Message]:
        """Return the requests by falling work, so that no long client is left for the end; the sort is stable."""
        client_at = census.client_at
        return sorted(messages, key=lambda m: -self.work[client_at[m.metadata.dst_node_id]])
