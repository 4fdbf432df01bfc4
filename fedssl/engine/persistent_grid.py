"""A SuperLink's grid that asks again for a reply that was lost.

Flower delivers a message once (1.41): if the SuperLink dies while a client fetches a request, or the server a reply, nobody
sends it again, and the round would wait for its whole timeout.
"""

import logging
import time
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fedssl import protocol
from fedssl.engine.grid_view import GridView

POLL_SECONDS = 0.5
"""Between looks for replies."""

LEAST_PATIENCE = 120.0
"""Seconds for which no reply is taken for lost: a client that died is let in again after about one minute."""

TIMES_SLOWEST = 10.0
"""A reply is taken for lost when it takes so many times as long as the slowest so far to a request of its kind."""

log = logging.getLogger("fedssl.server")


class PersistentGrid(GridView):
    """Ask again for what is taken for lost; of two replies of a client the first one counts.

    Nothing is asked again before one reply of its kind has come: until then nobody knows how long clients take.

    Args:
        inner: Flower's.
        least_patience: Seconds.
    """

    def __init__(self, inner: Grid, least_patience: float = LEAST_PATIENCE) -> None:
        super().__init__(inner)
        self._least_patience = least_patience
        self._slowest: dict[str, float] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies that came in time, one a message at most."""
        sent = list(messages)
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        places = dict(zip(self.push_messages(sent), range(len(sent)), strict=True))
        asked = dict.fromkeys(range(len(sent)), began)
        """When each was last asked for, of those that are missing."""
        replies: list[Message] = []
        while asked and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages([name for name, i in places.items() if i in asked]):
                place = places.get(reply.metadata.reply_to_message_id)
                if place in asked:
                    self._took(sent[place].metadata.message_type, time.monotonic() - began)
                    del asked[place]
                    replies.append(_as_its_own(reply, sent[place]))
            for place, last in asked.items():
                message = sent[place]
                if time.monotonic() - last > self._patience(message.metadata.message_type):
                    log.warning("no reply from node %d: asked again", message.metadata.dst_node_id)
                    (name,) = self.push_messages([_again(message)])
                    places[name], asked[place] = place, time.monotonic()
            if asked:
                time.sleep(POLL_SECONDS)
        return replies

    def _took(self, kind: str, seconds: float) -> None:
        self._slowest[kind] = max(seconds, self._slowest.get(kind, 0.0))

    def _patience(self, kind: str) -> float:
        if kind not in self._slowest:
            return float("inf")
        return max(self._least_patience, TIMES_SLOWEST * self._slowest[kind])


def _as_its_own(reply: Message, message: Message) -> Message:
    """Return a reply as the client's that was asked: what the SuperLink says in its place is the SuperLink's (flwr 1.41)."""
    node = message.metadata.dst_node_id
    if reply.has_error() and reply.metadata.src_node_id != node:
        return protocol.error_reply(message, reply.error.reason or "", raised=False)
    return reply


def _again(message: Message) -> Message:
    """Return another message that asks the same."""
    about = message.metadata
    return protocol.new_message(
        about.message_type, about.dst_node_id, message.content, about.group_id
    )
