"""What the grids of this machine have in common: clients by number, replies as they come, sums where they arise."""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedssl.engine.client_states import ClientStates
from fedssl.engine.ray.witness import Record
from fedssl.engine.worker import App, Together
from fedssl.exchange import protocol
from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import Answer, CohortSums
from fedssl.exchange.sums import Span

Result = TypeVar("Result")


@dataclass(frozen=True)
class Apps:
    """What runs clients.

    Args:
        one: The Flower app of one client.
        together: Runs several clients fused into one step; needed only where units of several are sent.
    """

    one: App
    together: Together | None = None


@dataclass(frozen=True)
class Patience:
    """What a grid bears with before it calls a client failed.

    Args:
        retries: How often a client that raised, hung or lost its worker is tried again.
        client_timeout: Seconds that one client may take; None: as long as the round.
    """

    retries: int = 0
    client_timeout: float | None = None


IMPATIENT = Patience()
"""One try, and no limit but the round's."""


def nothing() -> None:
    """Do nothing."""


class LocalGrid(Grid):
    """A Flower grid whose nodes are the numbered clients of a simulation.

    Args:
        num_clients: K.
    """

    def __init__(self, num_clients: int) -> None:
        self._run_ids = itertools.count(1)
        self._message_ids = itertools.count(1)
        self.states = ClientStates()
        self.restart(num_clients)

    def restart(self, num_clients: int) -> None:
        """Begin another run over the same workers: forget every client's state."""
        self._run = Run.create_empty(run_id=next(self._run_ids))
        self._num_clients = num_clients
        self.states.close()
        self.states = ClientStates(self.states.memory)
        self._pushed: dict[str, Message] = {}
        self.incidents: list[str] = []
        """What went wrong and was mended, such as a lost worker; whoever records it takes it out."""
        protocol.claim_identity(self._run.run_id)

    @abstractmethod
    def stream(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = nothing,
    ) -> Iterator[Message]:
        """Send messages and yield each reply as it comes; one reply a message, an error reply if need be.

        Args:
            messages: Requests, each to one client.
            timeout: Seconds after which what is still missing becomes an error reply; None waits.
            meanwhile: Called once: when all workers have something to do, or first where there are none but this one.
        """

    @abstractmethod
    def reduce(
        self,
        messages: Sequence[Message],
        sums: CohortSums,
        *,
        units: Sequence[Span] | None = None,
        holdings: Sequence[Holding] | None = None,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = nothing,
    ) -> Iterator[Answer]:
        """Send messages, add what comes back to sums where it arises, and yield what is left of each reply.

        Args:
            messages: Requests, those that take longest first.
            sums: Of as many places as there are units; filled once the iterator has ended.
            units: Messages whose clients are fused into one step, as positions, in order; by default each is alone.
            holdings: What the census said of each message's client; a reply that says otherwise is refused.
            timeout, meanwhile: As in `stream`.
        """

    @abstractmethod
    def map(
        self,
        function: Callable[..., Result],
        arguments: Sequence[tuple[Any, ...]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Call a function of some module once for each tuple of arguments, on the workers.

        Args:
            function: What to call, with the name of the worker's device and the arguments.
            arguments: One call each.
            timeout: Seconds that all of it may take; None waits.

        Returns:
            Results in order.
        """

    @property
    def num_workers(self) -> int:
        """How many run clients at once."""
        return 1

    @property
    def has_gpus(self) -> bool:
        """Whether clients train on GPUs."""
        return False

    def recording(self, record: Record | None) -> AbstractContextManager[None]:
        """Return a block within which a run goes on; if the workers' machinery ends this process, it is recorded there.

        Args:
            record: Where the run is recorded; None: nowhere.
        """
        return nullcontext()

    def close(self) -> None:
        """Let go of the workers."""

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run
        protocol.claim_identity(run.run_id)

    @property
    def run(self) -> Run:
        """Run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message to a node."""
        return protocol.new_message(message_type, dst_node_id, content, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node id of every client, by client number."""
        return [protocol.node_of(client) for client in range(self._num_clients)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages and return their ids; the work is done when their replies are pulled."""
        accepted = self._stamped(messages)
        self._pushed |= {message.metadata.message_id: message for message in accepted}
        return [message.metadata.message_id for message in accepted]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to accepted messages; each is given once."""
        known = [self._pushed.pop(name) for name in message_ids if name in self._pushed]
        return self.send_and_receive(known)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return all replies, in the order of the messages."""
        sent = self._stamped(messages)
        place = {message.metadata.message_id: i for i, message in enumerate(sent)}
        replies = self.stream(sent, timeout=timeout)
        return sorted(replies, key=lambda reply: place[reply.metadata.reply_to_message_id])

    def _stamped(self, messages: Iterable[Message]) -> list[Message]:
        sent = list(messages)
        for message in sent:
            if not message.metadata.message_id:
                protocol.stamp(message, f"{self._run.run_id}.{next(self._message_ids)}")
        return sent

    def _client(self, message: Message) -> int:
        client = protocol.client_of(message.metadata.dst_node_id)
        if not 0 <= client < self._num_clients:
            raise ValueError(f"node {message.metadata.dst_node_id} is not one of this grid's")
        return client


def single_units(messages: Sequence[Message]) -> list[Span]:
    """Return units in which every message is alone."""
    return [(i, i + 1) for i in range(len(messages))]
