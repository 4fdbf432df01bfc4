"""The gate passes clients' requests on, and answers nothing else."""

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedssl.deploy.gate import LARGEST, gate


async def behind(request: Request) -> Response:
    """Answer with what was asked."""
    body = await request.body()
    headers = {"x-path": request.url.path, "x-signature": request.headers.get("signature", "")}
    return Response(body[::-1], 203, headers)


def ask(method, path, *, headers=None, content=b"", superlink=None):
    async def asked():
        app = superlink or Starlette(
            routes=[Route("/{path:path}", behind, methods=["GET", "HEAD", "POST"])]
        )
        inner = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://superlink")
        outer = httpx.AsyncClient(
            transport=httpx.ASGITransport(gate(inner)), base_url="https://gate"
        )
        async with outer:
            return await outer.request(method, path, headers=headers, content=content)

    return asyncio.run(asked())


def test_a_clients_request_arrives_as_it_was_sent():
    answer = ask(
        "POST", "/v1/fleet/pull-messages", headers={"signature": "abc"}, content=b"\x00\x01"
    )
    assert (answer.status_code, answer.content) == (203, b"\x01\x00")
    assert answer.headers["x-path"] == "/v1/fleet/pull-messages"
    assert answer.headers["x-signature"] == "abc"
    assert ask("GET", "/health").status_code == 203


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/a%2Fb"),
        ("POST", "//v1/control/start-run"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
    ],
)
def test_nothing_else_is_answered(method, path):
    answer = ask(method, path)
    assert answer.status_code == 404
    assert "x-path" not in answer.headers


def test_other_methods_are_refused():
    assert ask("GET", "/v1/fleet/pull-messages").status_code == 405
    assert ask("DELETE", "/health").status_code == 405


def test_what_is_too_large_is_not_read():
    headers = {"content-length": str(LARGEST + 1)}
    assert ask("POST", "/v1/fleet/push-object", headers=headers).status_code == 413


def test_a_superlink_that_is_away_is_said_to_be():
    async def away(scope, receive, send):
        raise httpx.ConnectError("refused")

    assert ask("POST", "/v1/fleet/pull-messages", superlink=away).status_code == 503
