"""The only door to the outside: it passes clients' requests on to the SuperLink, and tells a client its number.

Flower's SuperLink serves clients, operators and its own processes on one port, and asks only clients for a key (1.41).
Anybody who reaches that port can start runs, and a run is code. So the SuperLink stays on the inside, and the gate
passes on clients' requests, which are signed with their keys. The gate reads little from an unknown sender: a
stranger's body may have 16 KB at most, which is all that Flower needs to refuse the request.

    python -m fedssl.app.deploy.gate --to superlink:8000 --host 0.0.0.0 --port 9443 --ca CA --certificate CRT --key KEY \
        --admitted FOLDER
"""

import argparse
import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import sys
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from fedssl.app.deploy.admitted import KEY, SIGNATURE, TIMESTAMP, Admitted
from fedssl.app.deploy.door import (
    CONNECTIONS_OF_STRANGERS,
    HEAD_BYTES,
    Connections,
    Notes,
    NotingHandler,
    make_door,
)

CALLS = frozenset(
    (
        "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat",
        "pull-messages", "push-messages", "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
    )
)  # fmt: skip
"""The calls that the SuperLink serves to clients under ``/v1/fleet/`` (flwr 1.41)."""

HEALTH = "/health"

NUMBER = "/number"
"""A registered client asks here whether it may have a number, e.g. ``/number/2``: 204 if so, 409 and the reason if not."""

LONGEST_NUMBER = 9
"""The gate reads numbers of at most this many digits."""

ASKED = (
    *("content-type", "accept", KEY, SIGNATURE, TIMESTAMP),
    *("flwr-package-name", "flwr-package-version", "flwr-component-name"),
)
"""The gate passes on these headers of a request, which Flower's clients send (1.41), and no others."""

ANSWERED = ("content-type", "flwr-version-incompatibility-message")
"""The gate passes on these headers of an answer, and no others."""

LARGEST = 32 << 20
"""A client's request may have this many bytes. Flower sends arrays in objects of 5 MiB (1.41)."""

LARGEST_OF_A_STRANGER = 16 << 10
"""A request without a registered key may have this many bytes. Flower's requests to be let in have about 250."""

HELD_OF_A_KEY, HELD = 2 * LARGEST, 16 * LARGEST
"""The gate holds this many bytes of unfinished requests for one key, and in all. Above them it answers 503."""

SECONDS, SECONDS_OF_A_STRANGER = 120.0, 15.0
"""A request may take this many seconds from its head to its answer: with a registered key, and without such a key."""


class TooLargeError(Exception):
    """A body has more bytes than its sender may send."""


class TooBusyError(Exception):
    """The gate holds as many bytes of unfinished requests as it may."""


class Gate:
    """Pass clients' requests on to the SuperLink.

    Args:
        superlink: The HTTP client that reaches the SuperLink.
        admitted: The registered keys.
        connections: The open connections.
        notes: Counts the refused requests.
    """

    def __init__(
        self,
        superlink: httpx.AsyncClient,
        admitted: Admitted,
        connections: Connections,
        notes: Notes,
    ) -> None:
        self._superlink = superlink
        self._admitted = admitted
        self._connections = connections
        self._notes = notes
        self._held: Counter[str] = Counter()

    async def serve(self, request: Request) -> Response:
        """Pass a client's call on and return its answer."""
        call = request.path_params["call"]
        if call not in CALLS:
            return PlainTextResponse("Not Found", 404)
        return await self._refuse_or_ask(request, f"/v1/fleet/{call}")

    async def health(self, request: Request) -> Response:
        """Return whether the SuperLink is well."""
        return await self._refuse_or_ask(request, HEALTH)

    async def number(self, request: Request) -> Response:
        """Say whether the client that signed a request may have a number."""
        key = self._key_of(request, request.headers)
        claim = request.path_params["claim"]
        if not key or not claim.isdecimal() or len(claim) > LONGEST_NUMBER:
            return PlainTextResponse("Not Found", 404)
        falsehood = self._admitted.falsehood(key, int(claim))
        return PlainTextResponse(falsehood, 409) if falsehood else Response(status_code=204)

    async def _refuse_or_ask(self, request: Request, path: str) -> Response:
        headers = {name: request.headers[name] for name in ASKED if name in request.headers}
        if not all(value.isascii() for value in headers.values()):
            return self._refuse(400, "requests with a header that is not ASCII")
        key = self._key_of(request, headers)
        try:
            async with asyncio.timeout(SECONDS if key else SECONDS_OF_A_STRANGER):
                return await self._ask(request, path, headers, key)
        except TooLargeError:
            return self._refuse(413, "bodies that are too large")
        except TooBusyError:
            return self._refuse(503, "bodies beyond what the gate holds at once")
        except TimeoutError:
            return self._refuse(408, "requests that took too long")
        except ClientDisconnect:
            return self._refuse(400, "bodies that broke off")
        except httpx.HTTPError as error:
            return self._refuse(503, "requests that the SuperLink did not answer", repr(error))
        except Exception as error:
            # The traceback is printed once for each kind of error, so that no sender can fill the log.
            return self._refuse(500, f"{type(error).__name__} in the gate", traceback.format_exc())

    async def _ask(
        self, request: Request, path: str, headers: dict[str, str], key: str
    ) -> Response:
        with self._holding(key) as hold:
            body = bytearray()
            largest = LARGEST if key else LARGEST_OF_A_STRANGER
            announced = request.headers.get("content-length", "0")
            if not announced.isdecimal() or int(announced) > largest:
                raise TooLargeError
            async for chunk in request.stream():
                if len(body) + len(chunk) > largest:
                    raise TooLargeError
                hold.take(len(chunk))
                body += chunk
            answer = await self._superlink.request(
                request.method, path, headers=headers, content=bytes(body)
            )
        kept = {name: answer.headers[name] for name in ANSWERED if name in answer.headers}
        return Response(answer.content, answer.status_code, kept)

    def _key_of(self, request: Request, headers: Mapping[str, str]) -> str:
        """Return the registered key that signed a request; empty without one."""
        key = headers.get(KEY, "")
        signature, timestamp = headers.get(SIGNATURE, ""), headers.get(TIMESTAMP, "")
        if not key or not self._admitted.has_signed(key, signature, timestamp):
            return ""
        connection = request.scope.get("state", {}).get("connection")
        if connection is not None:
            self._connections.recognize(connection, key)
        return key

    @contextlib.contextmanager
    def _holding(self, key: str) -> Iterator["_Hold"]:
        hold = _Hold(self._held, key)
        try:
            yield hold
        finally:
            hold.release()

    def _refuse(self, status: int, kind: str, details: str = "") -> Response:
        self._notes.add(kind, details)
        # The rest of the body is not read, so the connection must end.
        return PlainTextResponse(kind, status, {"connection": "close"})


class _Hold:
    """The bytes that one request holds, counted for its key and in all."""

    def __init__(self, held: Counter[str], key: str) -> None:
        self._held = held
        self._key = key
        self._bytes = 0

    def take(self, size: int) -> None:
        """Hold more bytes.

        Raises:
            TooBusyError: The key, or all keys together, hold too many.
        """
        self._held[self._key] += size
        self._bytes += size
        # Strangers, whose key is empty, are bounded by their connections.
        if (self._key and self._held[self._key] > HELD_OF_A_KEY) or self._held.total() > HELD:
            raise TooBusyError

    def release(self) -> None:
        """Let go of all bytes of the request."""
        self._held[self._key] -= self._bytes
        if not self._held[self._key]:
            del self._held[self._key]


def make_app(gate: Gate, superlink: httpx.AsyncClient) -> Starlette:
    """Return the app that answers clients' calls and questions and health checks, and answers 404 to anything else."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await superlink.aclose()

    routes = [
        Route("/v1/fleet/{call}", gate.serve, methods=["POST"]),
        Route(HEALTH, gate.health, methods=["GET", "HEAD"]),
        Route(f"{NUMBER}/{{claim}}", gate.number, methods=["GET"]),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.router.redirect_slashes = False  # a redirect would repeat the sender's Host header
    return app


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", required=True, help="the SuperLink, as HOST:PORT")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=9443)
    parser.add_argument(
        "--ca", required=True, help="authority that signed the SuperLink's certificate"
    )
    parser.add_argument("--certificate", required=True, help="the certificate shown to clients")
    parser.add_argument("--key", required=True, help="the certificate's private key")
    parser.add_argument("--admitted", required=True, type=Path, help="folder of clients' .pub keys")
    arguments = parser.parse_args()
    superlink = httpx.AsyncClient(
        base_url=f"https://{arguments.to}",
        verify=ssl.create_default_context(cafile=arguments.ca),
        timeout=httpx.Timeout(SECONDS, connect=10.0),
        trust_env=False,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(arguments.certificate, arguments.key)
    notes = Notes()
    connections = Connections(
        notes, of_strangers=min(CONNECTIONS_OF_STRANGERS, _raise_file_limit() // 2)
    )
    gate = Gate(superlink, Admitted(arguments.admitted), connections, notes)
    # uvicorn and asyncio put no bound on what they log about a stranger's requests.
    logging.getLogger().addHandler(NotingHandler(notes))
    config = uvicorn.Config(
        make_app(gate, superlink),
        http=make_door(context, connections, notes),
        loop="asyncio",
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run([_listen(arguments.host, arguments.port)])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        sys.exit(f"the gate cannot listen at {host}, port {port}: {error}")


def _raise_file_limit() -> int:
    """Raise this process's limit of open files as far as allowed, to at most 65,536; return the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65536 if most == resource.RLIM_INFINITY else min(most, 65536)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    return most


if __name__ == "__main__":
    main()
