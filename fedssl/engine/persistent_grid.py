"""A SuperLink's grid that sends a request again if its reply is lost.

Flower delivers a message once (1.41). If the SuperLink dies while a client fetches a request or the server fetches a
reply, nobody sends that message again, and the round would wait for its whole timeout. If it dies while it stores a
request, Flower's grid raises an error.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from fedssl.engine.grid_view import GridView
from fedssl.exchange import protocol

POLL_SECONDS = 0.5
"""The grid looks for replies again after this many seconds."""

LOOK_SECONDS = 1.0
"""One reply may hold up the others for this many seconds; after them it is pulled to its end in the background."""

LEAST_PATIENCE = 120.0
"""No reply counts as lost before this many seconds: a client that died is let in again after about one minute."""

TIMES_SLOWEST = 10.0
"""A reply counts as lost after this many times the seconds of the slowest reply so far to the same kind of request."""

PUSH_ATTEMPTS = 5
"""Requests that the SuperLink does not store completely are pushed this many times in all."""

log = logging.getLogger("fedssl.server")


class PersistentGrid(GridView):
    """Send a request again if its reply counts as lost; if a client replies twice, its first reply counts.

    The grid sends no request again before one reply to the same kind of request has come, because until then nobody
    knows how long clients take.

    A reply belongs to the node that was asked, whatever the reply says about its sender. A reply that cannot be pulled
    or read is an error of that node. A reply whose content never arrives completely delays no other reply and no
    deadline. (flwr 1.41 waits for such a reply for minutes, and its error loses all replies that are pulled together.)

    Args:
        inner: Flower's grid.
        least_patience: No reply counts as lost before this many seconds.
    """

    def __init__(self, inner: Grid, least_patience: float = LEAST_PATIENCE) -> None:
        super().__init__(inner)
        self._least_patience = least_patience
        self._slowest: dict[str, float] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids.

        A SuperLink that was restarted refuses the rest of what was being pushed. It knows the messages that it has
        stored, so that the same messages can be pushed again: it asks for the missing parts only.

        Raises:
            ObjectPushError: The SuperLink has refused them `PUSH_ATTEMPTS` times.
        """
        sent = list(messages)
        for _ in range(PUSH_ATTEMPTS - 1):
            try:
                return super().push_messages(sent)
            except ObjectPushError as error:
                log.warning("the requests are pushed again: %s", error)
                time.sleep(POLL_SECONDS)
        return super().push_messages(sent)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies that came in time, at most one for each message."""
        sent = list(messages)
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        places = dict(zip(self.push_messages(sent), range(len(sent)), strict=True))
        asked = dict.fromkeys(range(len(sent)), began)
        """The time of the last request for each reply that is missing, by the message's place."""
        pulls = _Pulls(self.pull_messages)
        replies: list[Message] = []
        while asked:
            # The clock is read before the grid looks for replies, so that the last look comes after the deadline and
            # finds every reply that has arrived by then.
            is_last = deadline is not None and time.monotonic() >= deadline
            for name, came in pulls.look([name for name, i in places.items() if i in asked]):
                place = places[name]
                if place in asked:
                    self._note_seconds(sent[place].metadata.message_type, time.monotonic() - began)
                    del asked[place]
                    replies.append(_attribute_to_node(came, sent[place]))
            if is_last:
                break
            for place, last in asked.items():
                message = sent[place]
                if time.monotonic() - last > self._seconds_until_lost(
                    message.metadata.message_type
                ):
                    log.warning(
                        "no reply from node %d: the request is sent again",
                        message.metadata.dst_node_id,
                    )
                    (name,) = self.push_messages([_repeat_request(message)])
                    places[name], asked[place] = place, time.monotonic()
            if asked:
                left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
                time.sleep(max(0.0, min(POLL_SECONDS, left)))
        return replies

    def _note_seconds(self, kind: str, seconds: float) -> None:
        self._slowest[kind] = max(seconds, self._slowest.get(kind, 0.0))

    def _seconds_until_lost(self, kind: str) -> float:
        if kind not in self._slowest:
            return float("inf")
        return max(self._least_patience, TIMES_SLOWEST * self._slowest[kind])


class _Pulls:
    """Pull replies one by one, each in a thread of its own.

    Args:
        pull: Takes the ids of requests and returns the replies that have arrived.
    """

    def __init__(self, pull: Callable[[Iterable[str]], Iterable[Message]]) -> None:
        self._pull = pull
        self._running: set[str] = set()
        self._came: queue.SimpleQueue[tuple[str, list[Message] | BaseException]] = (
            queue.SimpleQueue()
        )

    def look(self, names: Iterable[str]) -> list[tuple[str, Message | Exception]]:
        """Return the replies that have arrived, or the errors of pulling them, each with the id of its request."""
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
                raise came  # no fault of a reply: this process must end
            elif came:
                found.append((name, came[0]))
        return found

    def _run(self, name: str) -> None:
        try:
            self._came.put((name, list(self._pull([name]))))
        except BaseException as error:
            self._came.put((name, error))


def _attribute_to_node(came: Message | Exception, message: Message) -> Message:
    """Return a reply, or the error of pulling it, as a reply of the node that was asked.

    A reply that the SuperLink gives in place of a node means that the node is away (flwr 1.41), and counts as the
    node's.
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
    except Exception as error:  # a fault of one reply must not affect the other replies
        reason = f"refused: the reply cannot be read: {type(error).__name__}: {error}"
        return protocol.error_reply(message, protocol.shorten_reason(reason))


def _repeat_request(message: Message) -> Message:
    """Return a new message with the same request."""
    about = message.metadata
    return protocol.new_message(
        about.message_type, about.dst_node_id, message.content, about.group_id
    )
