"""The common part of the grids of this machine: numbered clients, streams of replies, and sums of replies."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.supercore.run import Run

from fedssl.engine.client_grid import ClientGrid, Screen, do_nothing, pass_all
from fedssl.engine.client_states import ClientStates
from fedssl.engine.ray.witness import Record
from fedssl.engine.worker import App, Done, Together
from fedssl.exchange import protocol
from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import Answer, CohortSums, Reduction
from fedssl.exchange.sums import Span


@dataclass(frozen=True)
class Apps:
    """The apps that run clients.

    Args:
        one: The Flower app that runs one client.
        together: The app that runs several clients fused into one step; needed only for units of several clients.
    """

    one: App
    together: Together | None = None


@dataclass(frozen=True)
class Patience:
    """The limits after which a grid calls a client failed.

    Args:
        retries: How often a client that raised, hung or lost its worker is tried again.
        client_timeout: Seconds that one client may take; None: as long as the round.
    """

    retries: int = 0
    client_timeout: float | None = None

    def for_clients(self, count: int) -> float:
        """Return the seconds that some clients may take together, which is the sum of what each may take; or infinity."""
        return math.inf if self.client_timeout is None else count * self.client_timeout


IMPATIENT = Patience()
"""A client gets one try, and no time limit except the round's."""


class LocalGrid(ClientGrid):
    """A Flower grid whose nodes are the numbered clients of a simulation.

    Args:
        num_clients: Number of clients, K.
    """

    def __init__(self, num_clients: int) -> None:
        self._run_ids = itertools.count(1)
        self._message_ids = itertools.count(1)
        self._states = ClientStates()
        self.restart(num_clients)

    def restart(self, num_clients: int) -> None:
        """Begin another run on the same workers, and forget every client's state."""
        self._run = Run.create_empty(run_id=next(self._run_ids))
        self._num_clients = num_clients
        self._states.close()
        self._states = ClientStates(self._states.memory)
        self._pushed: dict[str, Message] = {}
        self.incidents = []
        protocol.claim_identity(self._run.run_id)

    @property
    def is_simulation(self) -> bool:
        """Whether clients are simulated here; always true."""
        return True

    @property
    def states(self) -> ClientStates:
        """What clients keep between rounds."""
        return self._states

    @abstractmethod
    def _work_off(
        self,
        messages: Sequence[Message],
        units: Sequence[Span],
        reduction: Reduction | None,
        holdings: Sequence[Holding] | None,
        timeout: float | None,
        meanwhile: Callable[[], None],
    ) -> Iterator[tuple[Span, Done | str]]:
        """Run units of messages on the workers, and yield the outcome of each span of units.

        Args:
            messages: Requests.
            units: Ranges of positions among the messages; the messages of a unit run together.
            reduction: How replies are summed; None: replies are returned as messages.
            holdings: What the census says about each message's client; None: unknown.
            timeout, meanwhile: As in `ClientGrid.stream`.

        Yields:
            A span of units, and the results of their worker, or the reason why no worker ran them.
        """

    def stream(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = do_nothing,
        screen: Screen = pass_all,
    ) -> Iterator[Message]:
        """Yield one reply a message as parts of the cohort finish; a message without a result gets an error reply.

        Replies are not screened, because the workers are our own.
        """
        sent = self._stamped(messages)
        each_alone = single_units(sent)
        for span, outcome in self._work_off(sent, each_alone, None, None, timeout, meanwhile):
            if isinstance(outcome, Done):
                yield from outcome.replies
            else:
                for message in sent[slice(*span)]:
                    yield protocol.error_reply(message, outcome, protocol.AWAY)

    def reduce(
        self,
        messages: Sequence[Message],
        sums: CohortSums,
        *,
        units: Sequence[Span] | None = None,
        holdings: Sequence[Holding] | None = None,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = do_nothing,
        screen: Screen = pass_all,
    ) -> Iterator[Answer]:
        """Add the sums of the cohort's parts as they finish, and yield their answers. Replies are not screened."""
        sent = self._stamped(messages)
        spans = units or single_units(sent)
        worked = self._work_off(sent, spans, sums.reduction, holdings, timeout, meanwhile)
        for span, outcome in worked:
            if isinstance(outcome, Done):
                sums.add_part(span, outcome.part)
                yield from outcome.answers
                continue
            sums.skip(range(*span))
            for start, stop in spans[slice(*span)]:
                for message in sent[start:stop]:
                    yield Answer(message.metadata.dst_node_id, None, reason=outcome)

    def recording(self, record: Record | None) -> AbstractContextManager[None]:
        """Return a block for a run; if the software behind the workers ends this process within it, the record says so.

        Args:
            record: Where the run is recorded; None: nowhere.
        """
        return nullcontext()

    def close(self) -> None:
        """Release the workers."""

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run
        protocol.claim_identity(run.run_id)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
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
        """Accept messages and return their ids; their clients run when the replies are pulled."""
        accepted = self._stamped(messages)
        self._pushed |= {message.metadata.message_id: message for message in accepted}
        return [message.metadata.message_id for message in accepted]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to accepted messages; each message has one reply, once."""
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
                protocol.set_message_id(message, f"{self._run.run_id}.{next(self._message_ids)}")
        return sent

    def _client(self, message: Message) -> int:
        client = protocol.client_of(message.metadata.dst_node_id)
        if not 0 <= client < self._num_clients:
            raise ValueError(f"node {message.metadata.dst_node_id} is not one of this grid's")
        return client


def single_units(messages: Sequence[Message]) -> list[Span]:
    """Return units of one message each."""
    return [(i, i + 1) for i in range(len(messages))]
