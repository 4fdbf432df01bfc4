"""Who is there: client numbers, node ids, and how much each client holds."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MessageType, RecordDict

from fedssl import protocol, rng
from fedssl.config import Experiment
from fedssl.data.federation import Federation
from fedssl.data.terms import Terms
from fedssl.errors import InputError, RunFailed
from fedssl.system.section import num_asked

AWAY_TIMEOUT = 150.0
"""Seconds in which a client that is away may come back: one that died is let in again after about a minute (flwr 1.41)."""

AWAY_PAUSE = 3.0
"""Seconds before it is asked once more."""


@dataclass(frozen=True)
class Census:
    """The clients of a federation by number; counts only, never images or labels.

    Args:
        nodes: Node id of each client; Flower's are unsigned 64-bit, more than numpy's integers hold.
        num_examples: Training images of each client, (K,).
        num_labeled: Labeled ones among them, (K,).
    """

    nodes: tuple[int, ...]
    num_examples: npt.NDArray[np.int64]
    num_labeled: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.nodes)

    @functools.cached_property
    def client_at(self) -> dict[int, int]:
        """Client number of each node id."""
        return {node: client for client, node in enumerate(self.nodes)}

    @classmethod
    def of_simulation(cls, federation: Federation) -> "Census":
        """Return the census of our own grids without asking anyone: the simulator dealt the data itself."""
        clients = range(federation.num_clients)
        return cls(
            tuple(protocol.node_of(client) for client in clients),
            federation.sizes,
            federation.labeled_sizes,
        )

    @classmethod
    def unknown(cls, num_clients: int) -> "Census":
        """Return a census of one labeled image each, to try an experiment whose clients nobody has asked yet."""
        nodes = tuple(protocol.node_of(client) for client in range(num_clients))
        ones = np.ones(num_clients, dtype=np.int64)
        return cls(nodes, ones, ones)

    @classmethod
    def by_query(
        cls,
        ask: Callable[[Iterable[Message]], Iterable[Message]],
        nodes: Iterable[int],
        experiment: str,
        num_clients: int,
        terms: Terms | None = None,
    ) -> "Census":
        """Return the census of any grid by asking every node for its number and counts.

        Args:
            ask: Sends messages and returns the replies.
            nodes: Connected node ids.
            experiment: The experiment as JSON.
            num_clients: K.
            terms: What clients with private data must know of the federation's images.

        Raises:
            RunFailed: A client is missing, is there twice, or could not answer.
        """
        content = RecordDict({protocol.CONFIG: protocol.query_config(experiment, terms)})
        found: dict[int, tuple[int, int, int]] = {}
        for reply in _answers(ask, list(nodes), content):
            if reply.has_error():
                raise RunFailed(f"a client could not answer the census:\n{reply.error.reason}")
            metrics = protocol.metrics_of(reply)
            client = int(metrics[protocol.CLIENT])
            if client in found:
                raise RunFailed(f"two nodes say they are client {client}; give each its own number")
            found[client] = (
                reply.metadata.src_node_id,
                int(metrics[protocol.NUM_EXAMPLES]),
                int(metrics[protocol.NUM_LABELED]),
            )
        missing = sorted(set(range(num_clients)) - set(found))
        if missing:
            raise RunFailed(f"no census from clients {missing}")
        rows = [found[client] for client in range(num_clients)]
        return cls(
            tuple(node for node, _, _ in rows),
            np.array([num_examples for _, num_examples, _ in rows], dtype=np.int64),
            np.array([num_labeled for _, _, num_labeled in rows], dtype=np.int64),
        )


def _answers(
    ask: Callable[[Iterable[Message]], Iterable[Message]], nodes: list[int], content: RecordDict
) -> Iterator[Message]:
    """Ask every node, and those that are away once more, as long as they may be coming back; yield the last replies."""
    deadline = time.monotonic() + AWAY_TIMEOUT
    while nodes:
        away = []
        for reply in ask([protocol.new_message(MessageType.QUERY, n, content) for n in nodes]):
            if protocol.is_away(reply) and time.monotonic() < deadline:
                away.append(reply.metadata.src_node_id)
            else:
                yield reply
        nodes = away
        if nodes:
            time.sleep(AWAY_PAUSE)


def refuse_private(experiment: Experiment) -> None:
    """Refuse to simulate clients that bring their own data.

    Raises:
        InputError: They do.
    """
    if experiment.federation.private:
        raise InputError(
            "federation.private",
            "is true: clients bring data of their own, which a simulation has none of",
            "deploy it, or simulate clients with data.source's images: --set federation.private=false",
        )


@dataclass
class Cohorts:
    """How clients are sampled.

    Args:
        census: Who is there.
        sample: m; the server sets it anew in every phase.
        seed: The experiment's seed.
        over_selection: Clients asked for every one of the m.
        available: Clients that can be asked in this round, ascending; None: all. The server sets it anew.
    """

    census: Census
    sample: int
    seed: int
    over_selection: float = 1.0
    available: npt.NDArray[np.int64] | None = None

    def draw(self, server_round: int) -> list[int]:
        """Return the distinct client numbers that a round asks, ascending; uniform over those there.

        They are m; more under over-selection, and fewer where fewer are there.
        """
        stream = rng.numpy_generator(self.seed, "cohort", round=server_round)
        there = len(self.census) if self.available is None else self.available
        most = len(self.census) if self.available is None else len(self.available)
        asked = min(most, num_asked(self.sample, self.over_selection))
        drawn = stream.choice(there, size=asked, replace=False)
        return sorted(int(client) for client in drawn)

    def nodes(self, clients: Iterable[int]) -> list[int]:
        """Return the node ids of clients."""
        return [self.census.nodes[client] for client in clients]
