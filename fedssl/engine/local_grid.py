"""What the grids of this machine have in common: clients by number, replies as they come."""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedssl import protocol
from fedssl.engine.client_states import ClientStates


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
        protocol.claim_identity(self._run.run_id)

    @abstractmethod
    def stream(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send messages and yield each reply as it comes; one reply a message, an error reply if need be.

        Args:
            messages: Requests, each to one client.
            timeout: Seconds after which what is still missing becomes an error reply; None waits.
        """

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
