"""Admission to a deployment: by key and number; wrong clocks and wrong certificates get a clear message."""

import datetime
import json
import os
import re
import ssl
import threading
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedssl.app.deploy import admission, health, secrets
from fedssl.app.deploy.deployment import CONTAINERS_USER, Deployment
from fedssl.app.deploy.opening import Opened
from fedssl.app.deploy.operator import Operator
from fedssl.app.deploy.roster import Registered, Roster
from fedssl.app.deploy.secrets import write_certificates, write_node_key
from fedssl.app.deploy.services import LOST
from fedssl.core.errors import RunFailed
from tests.helpers import fedssl, refused


@pytest.fixture
def deployment(tmp_path):
    folder = tmp_path / "deployment"
    assert fedssl("deploy", "init", "--folder", folder, "--clients", 0).exit_code == 0
    return Deployment.open(folder)


@pytest.fixture
def asked(monkeypatch):
    """Stand in for Flower's commands: return what was registered, and give each a node id."""
    registered = []

    def register(self, public_key, name):
        registered.append((public_key, name))
        return f"{2**63 + len(registered)}"

    monkeypatch.setattr(Operator, "register", register)
    return registered


def register(deployment, key, *arguments):
    return fedssl(
        "deploy", "register", key, "--folder", deployment.folder, "--no-containers", *arguments
    )


def test_a_deployment_without_clients_of_its_own_lets_one_in(deployment, asked, tmp_path):
    write_node_key(tmp_path / "mine")
    done = register(deployment, tmp_path / "mine.pub", "--number", 3)
    assert done.exit_code == 0, done.output
    kept = deployment.admitted / "mine.pub"
    assert asked == [(str(kept.absolute()), "mine")]
    assert kept.read_bytes() == (tmp_path / "mine.pub").read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o600
    if os.getuid() == 0:
        assert kept.stat().st_uid == CONTAINERS_USER
    assert Roster(deployment.roster).read() == {"mine": Registered(f"{2**63 + 1}", 3)}


def test_a_number_or_a_name_is_given_once(deployment, asked, tmp_path):
    for name in ("mine", "other"):
        write_node_key(tmp_path / name)
    assert register(deployment, tmp_path / "mine.pub", "--number", 0).exit_code == 0
    other = tmp_path / "other.pub"
    refused(register(deployment, other, "--number", 0), "--number", "bound to 'mine'")
    refused(register(deployment, other, "--name", "mine"), "--name", "another key already")
    for name in ("../up", "a/b", "", ".hidden"):
        refused(register(deployment, other, "--name", name), "--name", "cannot be a client's name")
    assert [name for _, name in asked] == ["mine"]
    assert [file.name for file in deployment.admitted.iterdir()] == ["mine.pub"]


@pytest.mark.parametrize("what", ["private key", "certificate", "other kind", "folder", "nothing"])
def test_what_is_no_public_key_of_a_client_is_refused_before_it_is_copied(
    what, deployment, asked, tmp_path
):
    write_node_key(tmp_path / "mine")
    ed = ed25519.Ed25519PrivateKey.generate().public_key()
    other = ed.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (tmp_path / "ed.pub").write_bytes(other)
    file = {
        "private key": tmp_path / "mine",
        "certificate": deployment.certificates / "ca.crt",
        "other kind": tmp_path / "ed.pub",
        "folder": tmp_path,
        "nothing": tmp_path / "nowhere.pub",
    }[what]
    done = register(deployment, file, "--name", "oops")
    refused(done, "KEY", str(file))
    assert ("mine.pub" in done.output) == (what == "private key")
    assert not asked
    assert not list(deployment.admitted.iterdir())


def test_a_key_that_the_superlink_refuses_is_not_kept(deployment, monkeypatch, tmp_path):
    def register_refused(self, public_key, name):
        raise RunFailed("refused")

    monkeypatch.setattr(Operator, "register", register_refused)
    write_node_key(tmp_path / "mine")
    assert register(deployment, tmp_path / "mine.pub").exit_code == 1
    assert not list(deployment.admitted.iterdir())


def test_folders_are_their_owners_alone(deployment):
    folders = [deployment.folder, deployment.superlink, deployment.logs, deployment.submitted]
    for folder in (*folders, deployment.processes, deployment.runs, deployment.admitted):
        assert folder.stat().st_mode & 0o777 == 0o700, folder


def test_a_client_that_runs_and_is_away_is_said_to_be(deployment, monkeypatch, capsys):
    roster = Roster(deployment.roster)
    nodes = []
    for number, status in enumerate(("online", "offline", "offline")):
        roster.add(f"client-{number}", Registered(str(number), number))
        nodes.append({"node-id": str(number), "status": status})
    operator = Operator(deployment.folder, list, print)
    opened = Opened(deployment.folder, deployment, False, operator, deployment.folder)
    monkeypatch.setattr(Operator, "nodes", lambda self: nodes)
    lost = admission.find_lost_clients(opened, {"client-0", "client-1", "gate"})
    assert lost == {"client-1"}
    assert "client-1 runs but is not connected" in capsys.readouterr().out
    assert admission.find_lost_clients(opened, set()) == set()


@pytest.mark.parametrize(
    "said", ["unknown flag: --file\n", "unknown shorthand flag: 'f' in -f\n", "docker: 'compose' is not a docker command.\n"]
)  # fmt: skip
def test_docker_without_compose_is_one_message_with_a_way_out(
    said, deployment, monkeypatch, tmp_path
):
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\nprintf "%s" "{said}" >&2\nexit 125\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    done = fedssl("deploy", "up", "--folder", deployment.folder)
    refused(done, "Compose plugin", "--no-containers")


def make_certificates(monkeypatch, folder, days):
    monkeypatch.setattr(secrets, "VALID_DAYS", days)
    for name in ("ca.crt", "server.crt", "server.key"):
        (folder / name).unlink(missing_ok=True)
    write_certificates(folder, ())


def test_a_certificate_is_valid_for_a_host_whose_clock_is_behind(deployment):
    for name in ("ca.crt", "server.crt"):
        certificate = x509.load_pem_x509_certificate((deployment.certificates / name).read_bytes())
        age = datetime.datetime.now(datetime.UTC) - certificate.not_valid_before_utc
        assert datetime.timedelta(hours=23) < age < datetime.timedelta(hours=25)


def test_a_certificate_that_ends_soon_or_has_ended_is_said(
    deployment, monkeypatch, tmp_path, asked
):
    write_node_key(tmp_path / "mine")
    assert "expires" not in register(deployment, tmp_path / "mine.pub").output
    make_certificates(monkeypatch, deployment.certificates, 20)
    done = register(deployment, tmp_path / "mine.pub")
    assert done.exit_code == 0
    assert "expires in 20 days" in done.output
    make_certificates(monkeypatch, deployment.certificates, -0.5)
    refused(register(deployment, tmp_path / "mine.pub"), "expired", "fedssl deploy init")


class Server:
    """A service on this host that says it is some other time."""

    def __init__(self, seconds_behind=0.0, certificates=None):
        now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_behind)

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response_only(200)
                self.send_header("date", format_datetime(now, usegmt=True))
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Answer)
        if certificates is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.address = f"127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        (0, ""),
        (3, ""),
        (30, ".* is 3[01] s ahead of the server's"),
        (-400, ".* is (399|400) s behind the server's"),
    ],
)
def test_a_clock_that_differs_is_said(behind, words):
    with Server(behind) as server:
        answer = health.check_health(f"http://{server.address}/health", "")
    assert answer.is_well
    assert abs(answer.seconds_ahead - behind) < 1.5
    assert re.fullmatch(words, answer.clocks)


def test_an_expired_certificate_is_called_expired(tmp_path, monkeypatch):
    make_certificates(monkeypatch, tmp_path, -0.5)
    with Server(certificates=tmp_path) as server:
        answer = health.check_health(f"https://{server.address}/health", str(tmp_path / "ca.crt"))
    assert not answer.is_well
    assert "expired" in answer.problem


@pytest.fixture
def joining(tmp_path, monkeypatch):
    """Join a server without starting a client; return the outcome, and when the keeper would stop."""
    write_node_key(tmp_path / "mine")
    write_certificates(tmp_path / "certificates", ())
    stops = []

    def keep(command, started, is_over):
        stops.append(is_over)
        return 1

    monkeypatch.setattr("fedssl.app.deploy.keeper.keep", keep)

    def join(behind):
        folder = tmp_path / "certificates"
        with Server(behind, folder) as server:
            arguments = ["--number", 0, "--key", tmp_path / "mine", "--ca", folder / "ca.crt"]
            return fedssl("deploy", "join", server.address, *arguments), stops

    return join


@pytest.mark.parametrize(("behind", "words"), [(30, "3[01] s ahead"), (-400, "(399|400) s behind")])
def test_a_client_whose_clock_flower_would_refuse_does_not_start(behind, words, joining):
    done, stops = joining(behind)
    assert done.exit_code == 1
    assert re.search(words, done.output)
    assert "Set this host's clock" in done.output
    assert not stops


def test_a_clock_that_is_somewhat_behind_is_said_and_joins(joining):
    done, stops = joining(-100)
    assert re.search("(99|100) s behind", done.output)
    assert stops


def test_a_client_that_was_lost_is_started_again_and_one_that_is_refused_is_not(joining):
    done, (is_over,) = joining(0)
    assert done.exit_code == 1
    assert "the client ended with exit code 1" in done.output
    assert is_over(1, 1)  # no key, say
    assert is_over(1, 0)
    assert not is_over(1, LOST)
    assert not is_over(1, -9)
    assert not is_over(2, 1)  # Flower lets it in again after a minute only


def test_what_is_submitted_says_whose_numbers_are_bound(deployment):
    roster = Roster(deployment.roster)
    roster.add("mine", Registered(str(2**63 + 1), 0))
    roster.add("any", Registered("5", None))
    assert json.dumps(dict(roster.numbers())) == f'{{"{2**63 + 1}": 0}}'
    assert 'nodes = ""' in (deployment.app / "pyproject.toml").read_text()
