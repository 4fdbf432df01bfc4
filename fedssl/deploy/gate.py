"""The one door to the outside: what clients need of the SuperLink, and nothing else.

Flower's SuperLink serves clients, operators and its own processes on one port, and asks only clients for a key (1.41):
whoever reaches that port could start runs, which is to run code. So it stays on the inside, and this passes on the
requests of clients, which are signed with their keys.

    python -m fedssl.deploy.gate --to superlink:8000 --host 0.0.0.0 --port 9443 --ca CA --certificate CRT --key KEY
"""

import argparse
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

FLEET = "/v1/fleet/{call}"
"""Where the SuperLink serves clients (flwr 1.41)."""

HEALTH = "/health"

LARGEST = 4 << 30
"""Bytes that a request may have: more than any model's part that a client sends in one."""

OF_A_CONNECTION = frozenset(
    ("connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)  # fmt: skip
"""Headers that belong to one connection and are not passed on (RFC 9110, section 7.6.1)."""


def gate(client: httpx.AsyncClient) -> Starlette:
    """Return the app that passes clients' requests on, and answers 404 to any other.

    Args:
        client: Reaches the SuperLink.
    """

    async def pass_on(request: Request) -> Response:
        if int(request.headers.get("content-length", 0)) > LARGEST:
            return PlainTextResponse("too large", 413)
        headers = [(k, v) for k, v in request.headers.items() if k not in OF_A_CONNECTION]
        content = await request.body()
        try:
            answer = await client.request(
                request.method, request.url.path, headers=headers, content=content
            )
        except httpx.HTTPError:
            return PlainTextResponse("the SuperLink does not answer", 503)
        kept = {k: v for k, v in answer.headers.items() if k not in OF_A_CONNECTION}
        return Response(answer.content, answer.status_code, kept)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    routes = [
        Route(FLEET, pass_on, methods=["POST"]),
        Route(HEALTH, pass_on, methods=["GET", "HEAD"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", required=True, help="the SuperLink, as HOST:PORT")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=9443)
    parser.add_argument("--ca", required=True, help="certificate by which the SuperLink is known")
    parser.add_argument("--certificate", required=True, help="the server's, shown to clients")
    parser.add_argument("--key", required=True, help="the certificate's")
    arguments = parser.parse_args()
    client = httpx.AsyncClient(
        base_url=f"https://{arguments.to}",
        verify=ssl.create_default_context(cafile=arguments.ca),
        timeout=httpx.Timeout(120.0, connect=10.0),
        trust_env=False,
    )
    uvicorn.run(
        gate(client),
        host=arguments.host,
        port=arguments.port,
        ssl_certfile=arguments.certificate,
        ssl_keyfile=arguments.key,
        log_level="warning",
        server_header=False,
    )


if __name__ == "__main__":
    main()
