"""The census of a federation: client numbers, node ids, and how many images each client holds."""

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MessageType, RecordDict

from fedssl.core import rng
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.text import last_line
from fedssl.data.federation import Federation
from fedssl.data.terms import Terms
from fedssl.exchange import protocol
from fedssl.exchange.checks import COUNT_LIMIT, Holding
from fedssl.exchange.protocol import CLIENT, NUM_EXAMPLES, NUM_LABELED
from fedssl.exchange.waiting import OnWait, after_seconds, name_node, name_nodes, wait_silently
from fedssl.experiment.client_settings import ClientSettings
from fedssl.experiment.system.section import num_asked

AWAY_TIMEOUT = 150.0
"""The census waits this long (seconds) for nodes that are away. Flower lets a dead node in again after about a minute
(flwr 1.41)."""

AWAY_PAUSE = 3.0
"""The census waits this long (seconds) before it asks the nodes that are away again."""

NO_ROUND = "no round begins, because clients refuse the experiment"
"""The reason of a run that a client's privacy floor ended; the same experiment would end in the same way."""

MOST_REPEATED = 120
"""Every round repeats at most this many characters of the reason why a client is absent; an incident has the whole."""


@dataclass(frozen=True)
class Census:
    """The clients of a federation by number; it holds counts only, never images or labels.

    Args:
        nodes: Node id of each client. They are a tuple because Flower's ids are unsigned 64-bit integers, which int64
            cannot hold.
        num_examples: Number of training images of each client, (K,).
        num_labeled: Number of labeled training images of each client, (K,).
        absent: Clients for which no node gave a valid answer, and why. An absent client counts as failed in every round
            that draws it. Its counts are 0, and its node id is negative, which the id of a real node never is.
        incidents: Answers of nodes that could not be believed. The first line of each is a whole sentence; the traceback
            of a node's error follows it.
    """

    nodes: tuple[int, ...]
    num_examples: npt.NDArray[np.int64]
    num_labeled: npt.NDArray[np.int64]
    absent: Mapping[int, str] = field(default_factory=dict)
    incidents: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.nodes)

    @functools.cached_property
    def client_at(self) -> dict[int, int]:
        """The client number of each node id."""
        return {node: client for client, node in enumerate(self.nodes)}

    def holding(self, node: int) -> Holding:
        """Return what the census says about the client at a node."""
        client = self.client_at[node]
        return Holding(client, int(self.num_examples[client]), int(self.num_labeled[client]))

    @classmethod
    def of_simulation(cls, federation: Federation) -> "Census":
        """Return the census of a simulation without asking any client: the simulator dealt the data itself."""
        clients = range(federation.num_clients)
        return cls(
            tuple(protocol.node_of(client) for client in clients),
            federation.sizes,
            federation.labeled_sizes,
        )

    @classmethod
    def unknown(cls, num_clients: int) -> "Census":
        """Return a census in which every client has one labeled image, to try an experiment before asking any."""
        nodes = tuple(protocol.node_of(client) for client in range(num_clients))
        ones = np.ones(num_clients, dtype=np.int64)
        return cls(nodes, ones, ones.copy())

    @classmethod
    def by_query(
        cls,
        ask: Callable[[Iterable[Message]], Iterable[Message]],
        nodes: Iterable[int],
        experiment: str,
        num_clients: int,
        terms: Terms | None = None,
        *,
        min_success: float = 1.0,
        max_examples: int | None = None,
        numbers: Mapping[int, int] | None = None,
        on_wait: OnWait = wait_silently,
    ) -> "Census":
        """Return the census of any grid by asking every node for its client number and counts.

        No false answer of a single node ends a run. An answer that cannot be believed becomes an incident, and a client
        number without a believed node becomes absent. If two nodes claim the same number, neither is believed, because
        nobody can tell which node lies. A client whose own privacy floor refuses the experiment ends the run: the
        experiment must change, and the other clients would train without those that want more privacy.

        Args:
            ask: Sends messages and returns the replies.
            nodes: Ids of the connected nodes.
            experiment: The experiment as JSON.
            num_clients: Number of clients, K.
            terms: What clients with private data must know about the federation's images.
            min_success: Share of the K clients that must be present; at least one client must be in any case.
            max_examples: Largest number of training images that a client may claim; None: any number below 2^53.
            numbers: Node id -> the client number that is bound to it, as far as numbers are bound.
            on_wait: Is told for which nodes that are away the census waits.

        Raises:
            RunFailed: Fewer clients are present, or a client's privacy floor refuses the experiment. The message names
                every node that was not believed, with its answer.
        """
        numbers = numbers or {}
        # Ask every node; sort its answer into claims by client number, or into incidents.
        content = RecordDict({protocol.CONFIG: protocol.query_config(experiment, terms)})
        claims: dict[int, list[tuple[int, Holding]]] = defaultdict(list)
        incidents: list[str] = []
        refusals: list[str] = []
        reasons: dict[int, str] = {}
        silent = dict.fromkeys(nodes)
        for reply in _answers(ask, list(silent), content, numbers, on_wait):
            node = reply.metadata.src_node_id
            if node not in silent:
                continue  # only the first reply of a node counts
            del silent[node]
            if protocol.is_refused_by_floor(reply):
                refusals.append(protocol.shorten_reason(reply.error.reason or ""))
                continue
            try:
                holding = _claim(reply, num_clients, max_examples)
            except ValueError as error:
                incidents.append(f"census: {name_node(node, numbers)} is left out: {error}")
                reasons[node] = _shorten(str(error).splitlines()[0])
                continue
            claims[holding.client].append((node, holding))
        for node in silent:
            incidents.append(f"census: {name_node(node, numbers)} did not answer")
            reasons[node] = "it did not answer the census"
        # Stop if a client's owner asks for more privacy than the experiment gives.
        if refusals:
            said = "\n".join([f"{NO_ROUND}:", *refusals])
            raise RunFailed(protocol.shorten_reason(said))
        # Drop every client number that more than one node claims.
        for client, claimed in claims.items():
            if len(claimed) > 1:
                names = ", ".join(str(node) for node, _ in claimed)
                incidents.append(
                    f"census: two nodes say they are client {client} and neither is believed: {names}; "
                    "give each its own number"
                    if len(claimed) == 2
                    else f"census: {len(claimed)} nodes say they are client {client} and none is believed: {names}"
                )
        # Stop if too few clients are left; else give each absent client zero counts and a node id of its own.
        sure = {client: claimed[0] for client, claimed in claims.items() if len(claimed) == 1}
        # Refuse to go on with too few clients.
        missing = [client for client in range(num_clients) if client not in sure]
        if not sure or len(sure) < min_success * num_clients:
            said = "\n".join([f"no census from clients {list_clients(missing)}", *incidents])
            raise RunFailed(protocol.shorten_reason(said))
        # Fill in absent clients, which hold nothing, so that every array has K entries.
        blank = [(_absent_node(client), Holding(client, 0, 0)) for client in range(num_clients)]
        rows = [sure.get(client, blank[client]) for client in range(num_clients)]
        absent = dict.fromkeys(missing, "the census has no valid answer for it")
        absent |= {numbers[n]: why for n, why in reasons.items() if numbers.get(n) in absent}
        return cls(
            tuple(node for node, _ in rows),
            np.array([holding.num_examples for _, holding in rows], dtype=np.int64),
            np.array([holding.num_labeled for _, holding in rows], dtype=np.int64),
            {client: f"the client is absent: {why}" for client, why in absent.items()},
            tuple(incidents),
        )


def _shorten(reason: str) -> str:
    """Return the reason as every round repeats it."""
    if len(reason) <= MOST_REPEATED:
        return reason
    return f"{reason[:MOST_REPEATED]}... (the census's incident says all)"


def _absent_node(client: int) -> int:
    return -1 - client


def list_clients(clients: Sequence[int]) -> str:
    """Return client numbers as text for people, at most twenty of them."""
    more = f" and {len(clients) - 20} more" if len(clients) > 20 else ""
    return f"{clients[:20]}{more}"


def _claim(reply: Message, num_clients: int, max_examples: int | None) -> Holding:
    """Return what a node says about its client.

    Raises:
        ValueError: The answer cannot be true; the first line of the message quotes it.
    """
    if reply.has_error():
        reason = protocol.shorten_reason(reply.error.reason or "").strip()
        more = f"\n{reason}" if "\n" in reason else ""
        raise ValueError(f"it could not answer the census: {last_line(reason)}{more}")
    try:
        metrics = protocol.metrics_of(reply)
        said = [metrics[name] for name in (CLIENT, NUM_EXAMPLES, NUM_LABELED)]
    except Exception as error:  # a bad reply may fail in any way, and must hurt no other node
        problem = f"its answer cannot be read: {type(error).__name__}: {error}"
        raise ValueError(protocol.shorten_reason(problem)) from None
    client, num_examples, num_labeled = said
    limits = (num_clients, COUNT_LIMIT, num_examples + 1)
    for name, value, limit in zip((CLIENT, NUM_EXAMPLES, NUM_LABELED), said, limits, strict=True):
        if not 0 <= value < limit or value != int(value):
            raise ValueError(f"it says that its {name} is {value:g}")
    if max_examples is not None and num_examples > max_examples:
        raise ValueError(
            f"it says that it holds {num_examples:.0f} images, more than "
            f"server.max_client_examples = {max_examples}"
        )
    return Holding(int(client), int(num_examples), int(num_labeled))


def _answers(
    ask: Callable[[Iterable[Message]], Iterable[Message]],
    nodes: list[int],
    content: RecordDict,
    numbers: Mapping[int, int],
    on_wait: OnWait,
) -> Iterator[Message]:
    """Ask every node, ask nodes that are away again until `AWAY_TIMEOUT`, and yield the last reply of each."""
    deadline = time.monotonic() + AWAY_TIMEOUT
    told: set[int] = set()
    while nodes:
        away: list[int] = []
        for reply in ask([protocol.new_message(MessageType.QUERY, n, content) for n in nodes]):
            if protocol.is_away(reply) and time.monotonic() < deadline:
                away.append(reply.metadata.src_node_id)
            else:
                yield reply
        nodes = away
        if nodes:
            if set(nodes) != told:
                until = after_seconds(deadline - time.monotonic())
                on_wait(f"{name_nodes(nodes, numbers)} went away", until)
                told = set(nodes)
            time.sleep(AWAY_PAUSE)


def refuse_private(experiment: ClientSettings) -> None:
    """Refuse to simulate clients that bring their own data.

    Raises:
        InputError: The clients of the experiment bring their own data.
    """
    if experiment.federation.private:
        raise InputError(
            "federation.private",
            "is true: clients bring their own data, and a simulation has none",
            "deploy the experiment, or simulate it: give the folders of its clients as [federation.sites], or deal the images "
            "of [data]: --set federation.private=false",
        )


def refuse_sites(experiment: ClientSettings) -> None:
    """Refuse to deploy clients that are sites of a simulation: a server must not name files of its clients' hosts.

    Raises:
        InputError: The clients of the experiment are sites.
    """
    if experiment.federation.sites is not None:
        raise InputError(
            "federation.sites",
            "is for fedssl run, and a deployed client names its images itself",
            "set federation.private = true in place of the sites, as fedssl deploy run does",
        )


@dataclass
class Cohorts:
    """Sample the cohort of each round.

    Args:
        census: The clients of the federation.
        sample: Number of clients wanted in a round, m; the server sets it in every phase.
        seed: The experiment's seed.
        over_selection: Clients asked for each client wanted; at least 1.
        available: Numbers of the clients that can be asked in this round, ascending; None: all clients. The server sets
            this attribute in every round.
    """

    census: Census
    sample: int
    seed: int
    over_selection: float = 1.0
    available: npt.NDArray[np.int64] | None = None

    def draw(self, server_round: int, purpose: str = "cohort") -> list[int]:
        """Return the client numbers that a round asks: distinct, ascending, uniform over the available clients.

        There are m of them; more with over-selection, and fewer if fewer clients are available.

        Args:
            server_round: Round of the run, from 1.
            purpose: Name of the draw's random stream. Draws of other purposes are independent of each other.
        """
        stream = rng.make_numpy_generator(self.seed, purpose, round=server_round)
        there = len(self.census) if self.available is None else self.available
        most = len(self.census) if self.available is None else len(self.available)
        asked = min(most, num_asked(self.sample, self.over_selection))
        drawn = stream.choice(there, size=asked, replace=False)
        return sorted(int(client) for client in drawn)

    def num_wanted(self, asked: Sequence[int]) -> int:
        """Return how many different clients must answer before a round is complete.

        This number is m for one cohort. If a round asks several cohorts, which may share clients, it is the number of
        different clients without the share that over-selection adds.

        Args:
            asked: The client of each request of the round.
        """
        if len(asked) <= num_asked(self.sample, self.over_selection):
            return self.sample
        return math.ceil(round(len(set(asked)) / self.over_selection, 9))

    def nodes(self, clients: Iterable[int]) -> list[int]:
        """Return the node ids of clients."""
        return [self.census.nodes[client] for client in clients]
