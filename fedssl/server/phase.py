"""The parts of a phase that stay the same over its rounds, as the server needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flwr.app import Message
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.core.slots import Slot
from fedssl.exchange.census import Census
from fedssl.experiment.experiment import PhasePlan
from fedssl.experiment.system.devices import Floats
from fedssl.server.carry_over import shared_weights
from fedssl.strategies.base import SeededStrategy, strategy_of
from fedssl.strategies.by_replies import ReplyStrategy
from fedssl.strategies.by_sums import SumStrategy
from fedssl.strategies.flwr import Flwr
from fedssl.training.network import weights_sent_back


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

    @cached_property
    def _names_sent_back(self) -> frozenset[str]:
        return frozenset(weights_sent_back(self.network, self.experiment.method))

    def sent_back(self, arrays: NamedArrays) -> NamedArrays:
        """Return those of the global arrays that a reply carries too; the others stay as they are at the server."""
        return {name: array for name, array in arrays.items() if name in self._names_sent_back}

    def bytes_saved_down(self, client: int) -> int:
        """Return how many bytes of a client's request need not travel in this round, as the strategy says."""
        strategy = self.strategy
        return strategy.bytes_saved_down(client) if isinstance(strategy, SeededStrategy) else 0

    @property
    def bytes_saved_up(self) -> int:
        """Bytes of a reply to come that need not travel, as the strategy expects."""
        strategy = self.strategy
        return strategy.bytes_saved_up(None) if isinstance(strategy, ReplyStrategy) else 0

    def longest_first(self, messages: Sequence[Message], census: Census) -> list[Message]:
        """Return the requests by falling work, so that no long client is left for the end; the sort is stable."""
        client_at = census.client_at
        return sorted(messages, key=lambda m: -self.work[client_at[m.metadata.dst_node_id]])


def check_strategy(phase: PhasePlan, network: nn.Module) -> None:
    """Refuse a strategy that cannot work with the method or its network.

    A strategy of Flower's needs every array in every reply.

    Args:
        phase: The experiment as it stands in the phase.
        network: The network that clients train.

    Raises:
        InputError: The method and the strategy do not fit.
    """
    method, shared = phase.method, shared_weights(network, phase.method)
    strategy_of(phase).check(method, {name: t.detach().numpy() for name, t in shared.items()})
    sent_back = weights_sent_back(network, method)
    stays = [name for name in shared if name not in sent_back]
    if stays and isinstance(phase.strategy, Flwr):
        raise InputError(
            "strategy.kind",
            f"is {phase.strategy.kind!r}, but clients of {method.kind} do not send {stays[0]!r} back",
            "take a strategy that is not Flower's, such as 'fedavg'",
        )
