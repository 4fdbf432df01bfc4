"""The gate passes the requests of clients on, and answers no other request."""

import asyncio
import base64
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedssl.app.deploy.admitted import Admitted
from fedssl.app.deploy.door import HEAD_BYTES, Connections, Notes
from fedssl.app.deploy.gate import ASKED, CALLS, LARGEST, LARGEST_OF_A_STRANGER, Gate, make_app

NOBODY = Admitted(Path("nowhere"))


async def behind(request: Request) -> Response:
    """Answer with what was asked."""
    body = await request.body()
    told = f"{request.url.path} {request.headers.get('flwr-signature', '')} ".encode()
    return Response(told + body[::-1], 203)


def ask(method, path, *, headers=None, content=b"", superlink=None):
    async def asked():
        app = superlink or Starlette(
            routes=[Route("/{path:path}", behind, methods=["GET", "HEAD", "POST"])]
        )
        inner = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://superlink")
        notes = Notes()
        app = make_app(Gate(inner, NOBODY, Connections(notes), notes), inner)
        outer = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://gate")
        async with outer:
            return await outer.request(method, path, headers=headers, content=content)

    return asyncio.run(asked())


def test_a_clients_request_arrives_as_it_was_sent():
    headers = {"flwr-signature": "abc"}
    answer = ask("POST", "/v1/fleet/pull-messages", headers=headers, content=b"\x00\x01")
    assert answer.status_code == 203
    assert answer.content == b"/v1/fleet/pull-messages abc \x01\x00"
    assert ask("GET", "/health").status_code == 203


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/a%2Fb"),
        ("POST", "/v1/fleet/start-run"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "//v1/control/start-run"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
    ],
)
def test_nothing_else_is_answered(method, path):
    answer = ask(method, path)
    assert answer.status_code == 404
    assert path.encode() not in answer.content


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


@pytest.fixture(scope="module")
def flowers_request():
    """What Flower's own client sends to be let in."""
    keys = generate_key_pairs()
    interceptors = [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(*keys)]
    client = FleetHttpClient("https://gate", interceptors=interceptors)
    sent = []

    def take(request):
        sent.append(request)
        return httpx.Response(200)

    client._client = httpx.Client(transport=httpx.MockTransport(take), headers={})
    client.ActivateNode(ActivateNodeRequest(public_key=public_key_to_bytes(keys[1])))
    return sent[0]


def test_all_that_flowers_client_sends_is_passed_on(flowers_request):
    of_a_connection = {"host", "connection", "content-length", "accept-encoding", "user-agent"}
    assert set(flowers_request.headers) - of_a_connection == set(ASKED)
    calls = {path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}
    assert calls == {f"/v1/fleet/{call}" for call in CALLS}


def test_a_stranger_may_send_all_that_flower_needs_to_refuse_it(flowers_request):
    head = sum(len(name) + len(value) for name, value in flowers_request.headers.items())
    assert head < HEAD_BYTES / 8
    assert len(flowers_request.content) < LARGEST_OF_A_STRANGER / 8


def test_the_largest_part_of_a_model_that_flower_sends_passes():
    assert FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE < LARGEST / 4


def test_a_key_is_known_by_the_header_that_flower_makes_of_it(flowers_request, tmp_path):
    headers = flowers_request.headers
    pem = base64.b64decode(headers["flwr-public-key"])
    public = load_pem_public_key(pem).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    signed = (headers["flwr-public-key"], headers["flwr-signature"], headers["flwr-timestamp"])
    admitted = Admitted(tmp_path)
    assert not admitted.has_signed(*signed)
    (tmp_path / "client.pub").write_bytes(public)
    assert admitted.has_signed(*signed)
    assert not admitted.has_signed(signed[0], signed[1], signed[2].replace("20", "21", 1))
    assert not admitted.has_signed(signed[0], "", signed[2])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["add", "know", "remove"])), max_size=60)
)
@settings(max_examples=60, deadline=None)
def test_connections_are_bounded_and_the_oldest_of_the_largest_give_way(steps):
    connections = Connections(Notes(), per_owner=3, of_strangers=7)
    there: dict[object, str] = {}

    for peer, step in steps:
        owned = [connection for connection, owner in there.items() if owner == f"{peer}"]
        if step == "add":
            connection = object()
            there[connection] = f"{peer}"
            connections.add(connection, f"{peer}", lambda c=connection: there.pop(c))
            assert connection in there
        elif owned and step == "know":
            there[owned[0]] = f"key of {peer}"
            connections.recognize(owned[0], f"{peer}")
        elif owned:
            del there[owned[0]]
            connections.remove(owned[0])
        owners = list(there.values())
        assert len(connections) == len(owners)
        assert all(owners.count(owner) <= 3 for owner in owners)
        assert sum(not owner.startswith("key") for owner in owners) <= 7
