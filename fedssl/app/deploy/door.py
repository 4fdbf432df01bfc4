"""Limit the number and the duration of connections to the gate, before any sender is known.

uvicorn has no limit on the connections of one peer, and no deadline for a TLS handshake or for the head of a request
(0.49). `make_door` returns a protocol for uvicorn that has all three.
"""

import asyncio
import ipaddress
import logging
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""A connection that takes longer than this (seconds) for a TLS handshake or for the head of a request is cut off."""

HEAD_BYTES = 16 << 10
"""The head of a request may have this many bytes; Flower's has about 1 KB (1.41)."""

CONNECTIONS_PER_PEER = 64
"""One address, or one key, may hold this many connections. Above it, its oldest connection is cut off."""

CONNECTIONS_OF_STRANGERS = 512
"""All addresses together may hold this many connections that have not shown a registered key."""

NOTE_SECONDS = 600.0
"""Refusals are counted, and the counts are printed after this many seconds."""


class Notes:
    """Print the first refusal of each kind, and only counts after that, so that no stranger can fill a log."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._since = time.monotonic()

    def add(self, kind: str, details: str = "") -> None:
        """Note a refusal.

        Args:
            kind: One of a few fixed texts; never a text from the sender.
            details: Printed with the first refusal of its kind.
        """
        if kind not in self._seen:
            self._seen.add(kind)
            print(f"{_timestamp()} {kind} {details}".rstrip(), file=sys.stderr, flush=True)
        self._counts[kind] += 1
        seconds = time.monotonic() - self._since
        if seconds > NOTE_SECONDS:
            counts = ", ".join(f"{n} x {kind}" for kind, n in self._counts.most_common())
            print(f"{_timestamp()} in {seconds:.0f} s: {counts}", file=sys.stderr, flush=True)
            self._counts.clear()
            self._since = time.monotonic()


class NotingHandler(logging.Handler):
    """Note what uvicorn and asyncio log: the first record of each type of error in full, then only counts."""

    def __init__(self, notes: Notes) -> None:
        super().__init__(logging.WARNING)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record."""
        error = record.exc_info[0] if record.exc_info else None
        what = record.levelname if error is None else error.__name__
        self._notes.add(f"{record.name}: {what}", self.format(record))


class Connections:
    """The open connections by their owner: a peer's address, or a registered key once a request has shown it.

    A new connection is always let in, and the oldest one of its owner gives way: a TLS handshake that is refused makes a
    SuperNode give up for good (flwr 1.41), while an idle connection that is cut off costs an honest client nothing.

    Args:
        notes: Counts the connections that are cut off.
        per_owner: Connections that an owner may have.
        of_strangers: Connections of all addresses together, without those of keys.
    """

    def __init__(
        self,
        notes: Notes,
        per_owner: int = CONNECTIONS_PER_PEER,
        of_strangers: int = CONNECTIONS_OF_STRANGERS,
    ) -> None:
        self._notes = notes
        self._per_owner = per_owner
        self._of_strangers = of_strangers
        self._cuts: dict[str, dict[object, Callable[[], None]]] = {}  # oldest first
        self._owner: dict[object, str] = {}
        self._strangers = 0

    def __len__(self) -> int:
        return len(self._owner)

    def add(self, connection: object, peer: str, cut: Callable[[], None]) -> None:
        """Let a connection of an address in; `cut` closes it at once."""
        self._put(connection, peer, cut)
        self._strangers += 1
        if self._strangers > self._of_strangers:
            strangers = (owner for owner in self._cuts if not _is_key(owner))
            most = max(strangers, key=lambda owner: len(self._cuts[owner]))
            self._cut_oldest(most, "connections cut off, too many in all")

    def remove(self, connection: object) -> None:
        """Forget a connection that is closed."""
        owner = self._owner.pop(connection, None)
        if owner is None:
            return
        self._strangers -= not _is_key(owner)
        del self._cuts[owner][connection]
        if not self._cuts[owner]:
            del self._cuts[owner]

    def recognize(self, connection: object, key: str) -> None:
        """Count a connection as a registered key's from now on, no longer as its address's."""
        if connection in self._owner and self._owner[connection] != _KEY + key:
            cut = self._cuts[self._owner[connection]][connection]
            self.remove(connection)
            self._put(connection, _KEY + key, cut)

    def _put(self, connection: object, owner: str, cut: Callable[[], None]) -> None:
        self._owner[connection] = owner
        self._cuts.setdefault(owner, {})[connection] = cut
        if len(self._cuts[owner]) > self._per_owner:
            self._cut_oldest(owner, "connections cut off, too many of one peer")

    def _cut_oldest(self, owner: str, kind: str) -> None:
        oldest, cut = next(iter(self._cuts[owner].items()))
        self.remove(oldest)
        self._notes.add(kind, "" if _is_key(owner) else owner)
        cut()


def _timestamp() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


_KEY = "key "


def _is_key(owner: str) -> bool:
    return owner.startswith(_KEY)


def make_door(
    context: ssl.SSLContext, connections: Connections, notes: Notes
) -> type[asyncio.Protocol]:
    """Return the protocol that uvicorn starts for every connection, before TLS.

    Args:
        context: The server's certificate and key.
        connections: Counts the connections.
        notes: Counts the refused connections and requests.
    """

    class Door(asyncio.Protocol):
        """Count a connection, let it shake hands within `HEAD_SECONDS`, and hand it to HTTP."""

        def __init__(self, **server: Any) -> None:
            self._http = _Http(connections, notes, **server)
            self._loop = self._http.loop

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            peer = _owner_of_address(transport.get_extra_info("peername"))
            connections.add(self._http, peer, transport.abort)
            shaking = self._loop.create_task(self._shake_hands(transport))
            _running.add(shaking)  # the loop itself holds tasks weakly
            shaking.add_done_callback(_running.discard)

        async def _shake_hands(self, transport: asyncio.Transport) -> None:
            try:
                secured = await self._loop.start_tls(
                    transport,
                    self._http,
                    context,
                    server_side=True,
                    ssl_handshake_timeout=HEAD_SECONDS,
                )
            except (
                OSError
            ):  # also ssl.SSLError, TimeoutError and ConnectionError, which derive from it
                secured = None
            if secured is None:
                notes.add("handshakes that failed or took too long")
                connections.remove(self._http)
                transport.abort()
            else:
                self._http.connection_made(secured)

    return Door


_running: set["asyncio.Task[None]"] = set()


class _Http(H11Protocol):
    """HTTP/1.1 with a deadline for every head."""

    def __init__(self, connections: Connections, notes: Notes, **server: Any) -> None:
        super().__init__(**server)
        self._connections = connections
        self._notes = notes
        self._deadline: asyncio.TimerHandle | None = None
        self._early = bytearray()
        self._is_secured = False
        # This tells a request on which connection it came.
        self.app_state = {**self.app_state, "connection": self}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_secured = True
        self._watch()
        if self._early:
            self.data_received(bytes(self._early))

    def data_received(self, data: bytes) -> None:
        # asyncio delivers bytes that came with the handshake before `start_tls` returns.
        if not self._is_secured:
            self._early += data
            return
        # In pieces, because h11 checks its limit only after it has taken all bytes that came, up to 256 KB at a time.
        for start in range(0, len(data), HEAD_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + HEAD_BYTES])
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._unwatch()
        if self._is_secured:
            super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._notes.add("requests that are no HTTP/1.1 or have too large a head")
        super().send_400_response(msg)

    def _watch(self) -> None:
        """Start the deadline when a head is awaited, and end it when the head has come."""
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._cut)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        self._notes.add("heads that took too long")
        self.transport.abort()


def _owner_of_address(peer: Any) -> str:
    """Return the owner of an address: the address itself, or the /64 network of an IPv6 address (one subscriber)."""
    if not peer:
        return "unknown"
    address = ipaddress.ip_address(peer[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
