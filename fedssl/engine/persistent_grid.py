"""A SuperLink's grid that asks again for a reply that was lost.

Flower delivers a message once (1.41): if the SuperLink dies while a client fetches a request, or the server a reply, nobody
sends it again, and the round would wait for its whole timeout.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedssl.engine.grid_view import GridView
from fedssl.exchange import protocol

POLL_SECONDS = 0.5
"""Between looks for replies."""

LOOK_SECONDS = 1.0
"""Seconds that one reply may hold up the others; it is pulled to its end meanwhile."""

LEAST_PATIENCE = 120.0
"""Seconds for which no reply is taken for lost: a client that died is let in again after about one minute."""

TIMES_SLOWEST = 10.0
"""A reply is taken for lost when it takes so many times as long as the slowest so far to a request of its kind."""

log = logging.getLogger("fedssl.server")


class PersistentGrid(GridView):
    """Ask again for what is taken for lost; of two replies of a client the first one counts.

    Nothing is asked again before one reply of its kind has come: until then nobody knows how long clients take.

    A reply is that of the node that was asked, whatever it says of its sender. One that cannot be pulled or read is an
    error of that node, and one whose content never comes whole holds up no other and no deadline (flwr 1.41 waits for
    it for minutes, and what it raises takes all replies along that are pulled together).

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
        pulls = _Pulls(self.pull_messages)
        replies: list[Message] = []
        while asked:
            # Looked at before the first look, so that the last one is past the deadline: what is there by then counts.
            is_last = deadline is not None and time.monotonic() >= deadline
            for name, came in pulls.look([name for name, i in places.items() if i in asked]):
                place = places[name]
                if place in asked:
                    self._took(sent[place].metadata.message_type, time.monotonic() - began)
                    del asked[place]
                    replies.append(_as_its_own(came, sent[place]))
            if is_last:
                break
            for place, last in asked.items():
                message = sent[place]
                if time.monotonic() - last > self._patience(message.metadata.message_type):
                    log.warning("no reply from node %d: asked again", message.metadata.dst_node_id)
                    (name,) = self.push_messages([_again(message)])
                    places[name], asked[place] = place, time.monotonic()
            if asked:
                left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
                time.sleep(max(0.0, min(POLL_SECONDS, left)))
        return replies

    def _took(self, kind: str, seconds: float) -> None:
        self._slowest[kind] = max(seconds, self._slowest.get(kind, 0.0))

    def _patience(self, kind: str) -> float:
        if kind not in self._slowest:
            return float("inf")
        return max(self._least_patience, TIMES_SLOWEST * self._slowest[kind])


class _Pulls:
    """Pull replies one by one, each in a thread of its own.

    Args:
        pull: Returns the replies to requests that are there, by the ids of the requests.
    """

    def __init__(self, pull: Callable[[Iterable[str]], Iterable[Message]]) -> None:
        self._pull = pull
        self._running: set[str] = set()
        self._came: queue.SimpleQueue[tuple[str, list[Message] | BaseException]] = (
            queue.SimpleQueue()
        )

    def look(self, names: Iterable[str]) -> list[tuple[str, Message | Exception]]:
        """Return the replies that are there, or what pulling them raised, each with the id of its request."""
        for name in names:
            if name not in self._running:
                self._running.add(name)
                thread = threading.Thread(target=self._run, args=(name,), daemon=True)
                thread.start()
                thread.join(LOOK_SECONDS)
        found: list[tuple[str, Message | Exception]] = []
        while not self._came.empty():
            name, came = self._came.get()
            self._running.discard(name)
            if isinstance(came, Exception):
                found.append((name, came))
            elif isinstance(came, BaseException):
                raise came  # nobody's reply: this process is to end
            elif came:
                found.append((name, came[0]))
        return found

    def _run(self, name: str) -> None:
        try:
            self._came.put((name, list(self._pull([name]))))
        except BaseException as error:
            self._came.put((name, error))


def _as_its_own(came: Message | Exception, message: Message) -> Message:
    """Return what came as the reply of the node that was asked.

    What the SuperLink says in a node's place is that node's, which is away (flwr 1.41).
    """
    try:
        if isinstance(came, Exception):
            raise came
        if came.has_error():
            is_its_own = came.metadata.src_node_id == message.metadata.dst_node_id
            return protocol.error_reply(message, came.error.reason or "", raised=is_its_own)
        if not isinstance(came.content, RecordDict):
            raise TypeError(f"its content is a {type(came.content).__name__}")
        return protocol.reply_of(message, came.content)
    except Exception as error:  # whatever it is, it is this reply's and nobody else's
        reason = f"refused: the reply cannot be read: {type(error).__name__}: {error}"
        return protocol.error_reply(message, protocol.bounded(reason))


def _again(message: Message) -> Message:
    """Return another message that asks the same."""
    about = message.metadata
    return protocol.new_message(
        about.message_type, about.dst_node_id, message.content, about.group_id
    )
