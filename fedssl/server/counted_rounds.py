"""The last round of each client whose replies the server counted: a client that keeps its own state must know it.

Such a client keeps what it learned before its reply is sent. If the reply is lost, late or refused, the server goes on as
if the client had not trained, and so must the client. The sum of SCAFFOLD's variates over the clients, for example, is a
part of the server's state.
"""

from collections.abc import Sequence

from flwr.app import Message, RecordDict

from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.server.round_log import RoundLog


class CountedRounds:
    """Note which rounds count, and say so in the requests, where a client finds whether it must go back.

    It lives as long as the run: a run whose clients keep their state themselves cannot be resumed.
    """

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def attach(self, messages: Sequence[Message], census: Census) -> None:
        """Put each client's last counted round into its requests, in place; equal requests go on to share one content."""
        extended: dict[tuple[int, int], RecordDict] = {}
        contents = [message.content for message in messages]  # kept alive, so that their ids differ
        for message, content in zip(messages, contents, strict=True):
            last = self._last.get(census.client_at[message.metadata.dst_node_id], 0)
            key = id(content), last
            if key not in extended:
                extended[key] = protocol.with_config(content, {protocol.COUNTED: last})
            message.content = extended[key]

    def note(self, log: RoundLog) -> None:
        """Note the clients whose replies of a round count."""
        self._last |= dict.fromkeys(log.counted_clients, log.round)
