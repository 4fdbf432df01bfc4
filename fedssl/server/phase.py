"""What stays the same over the rounds of a phase, as the server needs it."""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedssl.exchange.census import Census
from fedssl.experiment.experiment import PhasePlan
from fedssl.experiment.system.devices import Floats
from fedssl.strategies.base import CohortStrategy


@dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Args:
        index: From 0.
        experiment: As it stands in the phase.
        text: The same, as it travels to clients.
        network: For scratch.
        strategy: Drives it.
        work: Images that every client trains on in a round, (K,).
    """

    index: int
    experiment: PhasePlan
    text: str
    network: nn.Module
    strategy: Strategy
    work: Floats

    @property
    def by_sums(self) -> bool:
        """Whether the strategy needs no more of the replies than their weighted sums, which workers make."""
        return isinstance(self.strategy, CohortStrategy)

    @property
    def buffers(self) -> frozenset[str]:
        """Names of the network's arrays that no optimizer may move: statistics and counts."""
        return frozenset(name for name, _ in self.network.named_buffers())

    def longest_first(self, messages: Sequence[Message], census: Census) -> list[Message]:
        """Return requests by falling work, so that nobody waits for one long client at the end; a stable order."""
        client_at = census.client_at
        return sorted(messages, key=lambda m: -self.work[client_at[m.metadata.dst_node_id]])
