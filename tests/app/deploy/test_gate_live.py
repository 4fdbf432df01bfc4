"""A live gate under strangers that send too much, too slowly or nothing: it still serves the clients."""

import base64
import datetime
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedssl.app.deploy.admitted import header_of
from fedssl.app.deploy.gate import LARGEST, LARGEST_OF_A_STRANGER
from fedssl.app.deploy.health import is_service_well
from fedssl.app.deploy.own_number import find_false_number
from fedssl.app.deploy.ports import find_free_ports
from fedssl.app.deploy.roster import ROSTER, Registered, Roster
from fedssl.app.deploy.secrets import write_certificates, write_node_key
from fedssl.app.deploy.services import WRONG_NUMBER, client_service

SECONDS = 2.0
"""The deadlines of strangers, shortened for these tests."""

GATE = f"""
from fedssl.app.deploy import door, gate
door.HEAD_SECONDS = gate.SECONDS_OF_A_STRANGER = {SECONDS}
gate.main()
"""


class LiveGate:
    """A gate in a process of its own, with a stand-in for the SuperLink behind it."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        write_certificates(folder, ())
        write_node_key(folder / "client")
        write_node_key(folder / "stranger")
        (folder / "admitted").mkdir()
        shutil.copy(folder / "client.pub", folder / "admitted")
        self.port, inner = find_free_ports(2)
        server = folder / "server.crt", folder / "server.key"
        stand_in = ["-m", "tests.app.deploy.superlink_stand_in", inner, *server]
        asked = ["--to", f"127.0.0.1:{inner}", "--port", self.port, "--ca", folder / "ca.crt",
                 "--certificate", server[0], "--key", server[1], "--admitted", folder / "admitted"]  # fmt: skip
        self.log = folder / "gate.log"
        self.trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        with self.log.open("wb") as log:
            self.processes = [
                subprocess.Popen([sys.executable, *map(str, parts)], stdout=log, stderr=log)
                for parts in (stand_in, [*command, *asked])
            ]
        deadline = time.monotonic() + 60
        while not is_service_well(f"https://127.0.0.1:{self.port}/health", str(folder / "ca.crt")):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    @property
    def memory(self) -> int:
        """Bytes that the gate's process holds."""
        pages = Path(f"/proc/{self.processes[1].pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return self.trust.wrap_socket(raw, server_hostname="127.0.0.1")

    def signed(self, name: str = "client") -> dict[str, str]:
        """Return the headers by which Flower's clients are known."""
        key = load_ssh_private_key((self.folder / name).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        now = datetime.datetime.now(datetime.UTC).isoformat()
        signature = key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": header_of(key.public_key()),
            "flwr-timestamp": now,
            "flwr-signature": base64.b64encode(signature).decode(),
        }

    def ask(self, call: str, content: object, headers: dict[str, str]) -> httpx.Response:
        url = f"https://127.0.0.1:{self.port}/v1/fleet/{call}"
        return httpx.post(
            url, content=content, headers=headers, verify=self.trust, trust_env=False, timeout=30
        )

    def seconds_of_an_honest_request(self) -> float:
        """Return how long a client waits for an answer that is right."""
        began = time.monotonic()
        answer = self.ask("pull-messages", b"x" * 1000, self.signed())
        assert answer.status_code == 200
        assert answer.json()["bytes"] == 1000
        return time.monotonic() - began


@contextmanager
def live(folder: Path, command: list[str]) -> Iterator[LiveGate]:
    gate = LiveGate(folder, command)
    try:
        yield gate
    finally:
        gate.close()


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    with live(tmp_path_factory.mktemp("gate"), ["-c", GATE]) as running:
        yield running


HEAD = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: gate\r\n"


def is_closed(connection: socket.socket) -> bool:
    """Say whether the other side has ended a connection, having read what it sent."""
    connection.settimeout(0.5)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def answer_of(connection: ssl.SSLSocket) -> bytes:
    """Return what is answered until the connection ends."""
    said = b""
    with suppress(OSError):
        while part := connection.recv(65536):
            said += part
    return said


def test_a_clients_request_passes_with_its_headers_and_no_others(gate):
    headers = {**gate.signed(), "content-type": "application/x-protobuf", "x-other": "1"}
    answer = gate.ask("push-object", b"\x00" * (5 * 2**20 + 500), headers)
    assert answer.status_code == 200
    told = answer.json()
    assert (told["path"], told["bytes"]) == ("/v1/fleet/push-object", 5 * 2**20 + 500)
    arrived = {name.lower(): value for name, value in told["headers"].items()}
    assert arrived["flwr-signature"] == headers["flwr-signature"]
    assert arrived["content-type"] == "application/x-protobuf"
    assert "x-other" not in arrived
    assert answer.headers["content-type"] == "application/x-told"
    assert "x-inside" not in answer.headers
    assert len(answer.headers.get_list("date")) == 1


def test_sixty_thousand_headers_are_refused_and_nobody_waits(gate):
    with gate.connect() as connection:
        before = gate.memory
        with suppress(OSError):  # it may be closed while we send
            connection.sendall(HEAD + b"x1:y\r\n" * 60_000 + b"\r\n")
        assert gate.seconds_of_an_honest_request() < 2
        assert is_closed(connection)
    assert gate.memory - before < 8 << 20


def test_a_strangers_body_is_not_read_beyond_its_limit(gate):
    before = gate.memory
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for stranger in (b"", *(f"{k}: {v}\r\n".encode() for k, v in gate.signed("stranger").items())):
        with gate.connect() as connection:
            with suppress(OSError):
                connection.sendall(HEAD + stranger + b"transfer-encoding: chunked\r\n\r\n")
                for _ in range(64):
                    connection.sendall(chunk)
            assert is_closed(connection)
    answer = gate.ask("push-object", b"x" * (LARGEST_OF_A_STRANGER + 1), gate.signed("stranger"))
    assert answer.status_code == 413
    assert gate.memory - before < 8 << 20


def test_a_clients_chunked_body_is_counted(gate):
    def parts(size):
        return (b"x" * 2**20 for _ in range(size >> 20))

    assert gate.ask("push-object", parts(LARGEST), gate.signed()).json()["bytes"] == LARGEST
    with suppress(httpx.TransportError):  # closed while we send
        assert gate.ask("push-object", parts(LARGEST + 2**20), gate.signed()).status_code == 413


@pytest.mark.parametrize("length", [b"4294967295", b"99999999999999999999"])
def test_a_length_that_is_too_large_is_refused_before_the_body(gate, length):
    with gate.connect() as connection:
        connection.sendall(HEAD + b"content-length: " + length + b"\r\n\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 413")


def test_a_body_shorter_than_its_length_ends_with_its_deadline(gate):
    with gate.connect() as connection:
        connection.sendall(HEAD + b"content-length: 1000\r\n\r\nten bytes!")
        began = time.monotonic()
        assert answer_of(connection).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < SECONDS + 3


@pytest.mark.parametrize("sent", ["no handshake", "half a head", "half a body", "drips"])
def test_slow_senders_are_cut_off_while_clients_are_served(gate, sent):
    with ExitStack() as stack:
        waiting: list[socket.socket] = []
        for _ in range(200):
            if sent == "no handshake":
                raw = socket.create_connection(("127.0.0.1", gate.port), timeout=20)
                waiting.append(stack.enter_context(raw))
                continue
            connection = stack.enter_context(gate.connect())
            half = HEAD if sent != "half a body" else HEAD + b"content-length: 9\r\n\r\n1"
            with suppress(OSError):
                connection.sendall(half)
            waiting.append(connection)
        assert gate.seconds_of_an_honest_request() < 2
        until = time.monotonic() + SECONDS + 1
        while time.monotonic() < until:
            time.sleep(0.3)
            if sent == "drips":
                with suppress(OSError):
                    waiting[-1].sendall(b"x: y\r\n")
        assert all(is_closed(connection) for connection in waiting)
    assert gate.seconds_of_an_honest_request() < 2


def test_what_breaks_off_or_is_no_http_writes_little_and_answers_no_500(gate):
    before = gate.log.stat().st_size
    for bad in (b"nonsense\r\n\r\n", HEAD + b"content-length: 100\r\n\r\n1", HEAD + b"accept: \xff\r\n\r\n"):  # fmt: skip
        for _ in range(60):
            with gate.connect() as connection:
                connection.sendall(bad)
                if b"content-length" not in bad:
                    assert answer_of(connection).startswith(b"HTTP/1.1 400")
    upgrade = (
        b"GET /health HTTP/1.1\r\nhost: g\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    )
    with gate.connect() as connection:
        connection.sendall(upgrade)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")  # no WebSocket
    time.sleep(0.5)
    said = gate.log.read_text()
    assert "Traceback" not in said
    assert gate.log.stat().st_size - before < 2000


def test_a_key_is_a_clients_from_its_registration_on(gate):
    body = b"x" * (LARGEST_OF_A_STRANGER + 1)
    assert gate.ask("push-object", body, gate.signed("stranger")).status_code == 413
    shutil.copy(gate.folder / "stranger.pub", gate.folder / "admitted")
    try:
        assert gate.ask("push-object", body, gate.signed("stranger")).status_code == 200
        stolen = {**gate.signed("stranger"), "flwr-signature": gate.signed()["flwr-signature"]}
        assert gate.ask("push-object", body, stolen).status_code == 413
        old = {**gate.signed("stranger"), "flwr-timestamp": "2020-01-01T00:00:00+00:00"}
        assert gate.ask("push-object", body, old).status_code == 413
    finally:
        (gate.folder / "admitted" / "stranger.pub").unlink()


def test_a_registered_client_alone_is_told_whether_it_may_have_a_number(gate):
    admitted = gate.folder / "admitted"
    shutil.copy(gate.folder / "stranger.pub", admitted / "free.pub")
    roster = Roster(admitted / ROSTER)
    roster.add("client", Registered("7", 1))
    roster.add("free", Registered("8", None))
    where = (f"127.0.0.1:{gate.port}", gate.folder / "ca.crt")
    try:
        said = find_false_number(*where, gate.folder / "client", 2)
        assert said == "is 2, but by the server's list the key client is bound to the number 1"
        assert find_false_number(*where, gate.folder / "client", 1) == ""
        assert "is bound to another key" in find_false_number(*where, gate.folder / "stranger", 1)
        assert find_false_number(*where, gate.folder / "stranger", 2) == ""
        # Before Flower starts, the process ends with a code of its own.
        command = client_service(
            sys.executable, 2, *where, gate.folder / "client", 1, gate.folder, None
        ).command
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == WRONG_NUMBER
        assert "this client's number is 2, but" in done.stderr
    finally:
        (admitted / "free.pub").unlink()
    # Nobody else is answered, and no number that is none.
    write_node_key(gate.folder / "unknown")
    assert find_false_number(*where, gate.folder / "unknown", 1) == ""
    for path, headers in (("1", {}), ("x", gate.signed()), ("9" * 5000, gate.signed())):
        url = f"https://{where[0]}/number/{path}"
        answer = httpx.get(url, headers=headers, verify=gate.trust, trust_env=False)
        assert answer.status_code == 404


def test_the_gate_ends_when_it_is_told_to_though_somebody_is_connected(tmp_path):
    with live(tmp_path, ["-m", "fedssl.app.deploy.gate"]) as running:
        with running.connect() as connection:
            connection.sendall(HEAD)
            running.processes[1].terminate()
            assert running.processes[1].wait(10) in (0, -15)
        taken = [sys.executable, "-m", "fedssl.app.deploy.gate", "--to", "127.0.0.1:1", "--ca", running.folder / "ca.crt",
                 "--certificate", running.folder / "server.crt", "--key", running.folder / "server.key",
                 "--admitted", tmp_path]  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = str(holder.getsockname()[1])
            done = subprocess.run(
                [*map(str, taken), "--port", port], capture_output=True, text=True
            )
        assert done.returncode == 1
        assert "cannot listen" in done.stderr
        assert "Traceback" not in done.stderr
