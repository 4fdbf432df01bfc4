"""A SuperLink's grid that sends a request again if its reply is lost.

Flower delivers a message once (1.41). If the SuperLink dies while a client fetches a request or the server fetches a
reply, nobody sends that message again, and the round would wait for its whole timeout. If it dies while it stores a
request, Flower's grid raises an error.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from fedssl.engine.grid_view import GridView
from fedssl.exchange import protocol
from fedssl.exchange.packing import pack, unpack
from fedssl.exchange.waiting import OnWait, after_seconds, name_node, name_nodes, wait_silently

POLL_SECONDS = 0.5
"""The grid looks for replies again after this many seconds."""

LOOK_SECONDS = 1.0
"""One reply may hold up the others for this many seconds; after them it is pulled to its end in the background."""

LEAST_PATIENCE = 120.0
"""No reply counts as lost before this many seconds: a client that died is let in again after about one minute."""

TIMES_SLOWEST = 10.0
"""A reply counts as lost after this many times the seconds of the slowest reply so far to the same kind of request."""

AWAY_PATIENCE = 150.0
"""The grid waits this many seconds for a node that went away with a request to train. Flower lets a node that died in again
after about a minute (1.41)."""

LATE_SECONDS, LATE_SECONDS_AT_FIRST = 15.0, 30.0
"""No reply counts as late before this many seconds; the second number holds until one reply to the same kind of request has
come. Those who follow the run are told of late replies."""

TIMES_SLOWEST_UNTIL_LATE = 2.0
"""A reply counts as late after this many times the seconds of the slowest reply so far to the same kind of request."""

PUSH_ATTEMPTS = 5
"""Requests that the SuperLink does not store completely are pushed this many times in all."""

log = logging.getLogger("fedssl.server")


class PersistentGrid(GridView):
    """Send a request again if its reply counts as lost; if a client replies twice, its first reply counts.

    If a node goes away with a request to train, the SuperLink answers in its place. The grid sends the request again as
    soon as the node is back, so that a client that dies and is started again costs time and no reply. A node that does not
    come back in time is not waited for again before it has answered something.

    The grid sends no request again before one reply to the same kind of request has come, because until then nobody
    knows how long clients take.

    Messages travel packed (`fedssl.exchange.packing`). A reply belongs to the node that was asked, whatever the reply says about its sender. A reply that cannot be pulled
    or read is an error of that node. A reply whose content never arrives completely delays no other reply and no
    deadline. (flwr 1.41 waits for such a reply for minutes, and its error loses all replies that are pulled together.)

    Args:
        inner: Flower's grid.
        least_patience: No reply counts as lost before this many seconds.
        away_patience: The grid waits this many seconds for a node that is away.
        late_seconds: No reply counts as late before this many seconds, after one reply and before the first one.
        numbers: Node id -> the client number that is bound to it, as far as numbers are bound.
        on_wait: Is told which replies are late, and which nodes went away.
    """

    def __init__(
        self,
        inner: Grid,
        least_patience: float = LEAST_PATIENCE,
        away_patience: float = AWAY_PATIENCE,
        late_seconds: tuple[float, float] = (LATE_SECONDS, LATE_SECONDS_AT_FIRST),
        numbers: Mapping[int, int] | None = None,
        on_wait: OnWait = wait_silently,
    ) -> None:
        super().__init__(inner)
        self._least_patience = least_patience
        self._away_patience = away_patience
        self._late_seconds = late_seconds
        self._numbers = numbers or {}
        self._on_wait = on_wait
        self._given_up: set[int] = set()
        self._slowest: dict[str, float] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids.

        A SuperLink that was restarted refuses the rest of what was being pushed. It knows the messages that it has
        stored, so that the same messages can be pushed again: it asks for the missing parts only.

        Raises:
            ObjectPushError: The SuperLink has refused them `PUSH_ATTEMPTS` times.
        """
        sent = _pack_messages(messages)
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
        absent = _Absent(
            self, self._away_patience, self._given_up, deadline, self._numbers, self._on_wait
        )
        replies: list[Message] = []
        told_late = False
        while asked or absent:
            # The clock is read before the grid looks for replies, so that the last look comes after the deadline and
            # finds every reply that has arrived by then.
            is_last = deadline is not None and time.monotonic() >= deadline
            for name, came in pulls.look([name for name, i in places.items() if i in asked]):
                place = places[name]
                if place not in asked:
                    continue
                message, since = sent[place], asked.pop(place)
                reply = _attribute_to_node(came, message)
                if protocol.is_away(reply):
                    del places[name]  # the SuperLink would give this answer again and again
                    replies += absent.note(place, message, reply)
                    continue
                self._given_up.discard(message.metadata.dst_node_id)
                self._note_seconds(message.metadata.message_type, time.monotonic() - since)
                replies.append(reply)
            if is_last:
                replies += absent.give_up(everybody=True)
                break
            for place in [*absent.returned(), *self._lost(sent, asked)]:
                (name,) = self.push_messages([_repeat_request(sent[place])])
                places[name], asked[place] = place, time.monotonic()
            replies += absent.give_up()
            if not told_late:
                told_late = self._tell_late(sent, asked, began, deadline)
            if asked or absent:
                left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
                time.sleep(max(0.0, min(POLL_SECONDS, left)))
        return replies

    def _lost(self, sent: Sequence[Message], asked: Mapping[int, float]) -> list[int]:
        """Return the places of the messages whose replies count as lost."""
        found = []
        for place, last in asked.items():
            about = sent[place].metadata
            if time.monotonic() - last > self._seconds_until_lost(about.message_type):
                log.warning("no reply from node %d: the request is sent again", about.dst_node_id)
                found.append(place)
        return found

    def _tell_late(
        self,
        sent: Sequence[Message],
        asked: Iterable[int],
        began: float,
        deadline: float | None,
    ) -> bool:
        """Tell which replies are late, if any are; return whether there was something to tell."""
        now = time.monotonic()
        about = [sent[place].metadata for place in asked]
        late = [
            m.dst_node_id for m in about if now - began > self._seconds_until_late(m.message_type)
        ]
        if late:
            until = after_seconds(math.inf if deadline is None else deadline - now)
            self._on_wait(f"no answer yet from {name_nodes(late, self._numbers)}", until)
        return bool(late)

    def _seconds_until_late(self, kind: str) -> float:
        usual, at_first = self._late_seconds
        if kind not in self._slowest:
            return at_first
        return max(usual, TIMES_SLOWEST_UNTIL_LATE * self._slowest[kind])

    def _note_seconds(self, kind: str, seconds: float) -> None:
        self._slowest[kind] = max(seconds, self._slowest.get(kind, 0.0))

    def _seconds_until_lost(self, kind: str) -> float:
        if kind not in self._slowest:
            return float("inf")
        return max(self._least_patience, TIMES_SLOWEST * self._slowest[kind])


class _Absent:
    """Nodes that went away with a request to train, which is sent again once they are back.

    Args:
        grid: Says which nodes are connected.
        patience: A node is waited for during this many seconds.
        given_up: Nodes that are not waited for; nodes that do not come back in time are added.
        deadline: Time of the monotonic clock after which no node is waited for; None: there is none.
        numbers: Node id -> the client number that is bound to it, as far as numbers are bound.
        on_wait: Is told of every node that went away.
    """

    def __init__(
        self,
        grid: Grid,
        patience: float,
        given_up: set[int],
        deadline: float | None,
        numbers: Mapping[int, int],
        on_wait: OnWait,
    ) -> None:
        self._grid = grid
        self._patience = patience
        self._given_up = given_up
        self._deadline = math.inf if deadline is None else deadline
        self._numbers = numbers
        self._on_wait = on_wait
        self._since: dict[int, float] = {}
        self._waiting: dict[int, tuple[Message, Message]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def note(self, place: int, message: Message, reply: Message) -> list[Message]:
        """Note that a node is away; return the reply in its place if nobody waits for the node."""
        node = message.metadata.dst_node_id
        if node in self._given_up or not message.metadata.message_type.startswith(
            MessageType.TRAIN
        ):
            return [reply]
        log.warning("node %d went away: its request is sent again when it is back", node)
        now = time.monotonic()
        since = self._since.setdefault(place, now)
        until = after_seconds(min(self._deadline, since + self._patience) - now)
        self._on_wait(f"{name_node(node, self._numbers)} went away", until)
        self._waiting[place] = message, reply
        return []

    def returned(self) -> list[int]:
        """Return the places of the messages whose nodes are connected again; they do not count as away any more."""
        if not self._waiting:
            return []
        connected = set(self._grid.get_node_ids())
        back = [
            place
            for place, (message, _) in self._waiting.items()
            if message.metadata.dst_node_id in connected
        ]
        for place in back:
            del self._waiting[place]
        return back

    def give_up(self, *, everybody: bool = False) -> list[Message]:
        """Return the replies in place of the nodes that did not come back in time, or of all nodes that are away."""
        now = time.monotonic()
        late = [p for p in self._waiting if everybody or now - self._since[p] > self._patience]
        replies = []
        for place in late:
            message, reply = self._waiting.pop(place)
            self._given_up.add(message.metadata.dst_node_id)
            replies.append(reply)
        return replies


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
            reason = came.error.reason or ""
            if came.metadata.src_node_id != message.metadata.dst_node_id:
                return protocol.error_reply(message, reason, protocol.AWAY)
            is_refusal = protocol.is_refused_by_floor(came)
            code = protocol.REFUSED_BY_FLOOR if is_refusal else protocol.RAISED
            return protocol.error_reply(message, reason, code)
        if not isinstance(came.content, RecordDict):
            raise TypeError(f"its content is a {type(came.content).__name__}")
        return protocol.reply_of(message, unpack(came.content))
    except Exception as error:  # a fault of one reply must not affect the other replies
        reason = f"refused: the reply cannot be read: {type(error).__name__}: {error}"
        return protocol.error_reply(message, protocol.shorten_reason(reason))


def _pack_messages(messages: Iterable[Message]) -> list[Message]:
    """Return new messages with packed contents; messages that share a content share the packed one."""
    given = list(messages)
    contents = {id(message.content): message.content for message in given}
    packed = {key: pack(content) for key, content in contents.items()}

    def packed_message(message: Message) -> Message:
        about, content = message.metadata, packed[id(message.content)]
        return protocol.new_message(
            about.message_type, about.dst_node_id, content, about.group_id, about.ttl
        )

    return list(map(packed_message, given))


def _repeat_request(message: Message) -> Message:
    """Return a new message with the same request."""
    about = message.metadata
    return protocol.new_message(
        about.message_type, about.dst_node_id, message.content, about.group_id
    )
