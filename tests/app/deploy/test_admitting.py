"""Admission to a deployment: by key and number; wrong clocks and wrong certificates get a clear message."""

import datetime
import json
import logging
import os
import re
import shlex
import socket
import ssl
import threading
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.config import parse_config_args

from fedssl.app.deploy import admission, health, own_number, secrets
from fedssl.app.deploy.deployment import CONTAINERS_USER, Deployment
from fedssl.app.deploy.join import REFUSED_PAUSE
from fedssl.app.deploy.keeper import PAUSE
from fedssl.app.deploy.opening import Opened
from fedssl.app.deploy.operator import Operator
from fedssl.app.deploy.roster import ROSTER, Registered, Roster
from fedssl.app.deploy.secrets import write_certificates, write_node_key
from fedssl.app.deploy.services import LOST, REFUSED, WRONG_NUMBER
from fedssl.app.deploy.supernode import Refusal
from fedssl.core.errors import RunFailed
from tests.helpers import fedssl, refused


@pytest.fixture
def deployment(tmp_path):
    folder = tmp_path / "deployment"
    assert fedssl("deploy", "init", "--folder", folder, "--clients", 0).exit_code == 0
    return Deployment.open(folder)


@pytest.fixture
def asked(monkeypatch):
    """Stand in for Flower's commands: return what was registered, and give each new key a node id."""
    registered, known = [], {}

    def register(self, public_key, name):
        key = Path(public_key).read_bytes()
        if key in known:
            return None
        registered.append((public_key, name))
        known[key] = f"{2**63 + len(registered)}"
        return known[key]

    monkeypatch.setattr(Operator, "register", register)
    return registered


@pytest.fixture
def let_out(monkeypatch):
    """Stand in for Flower's command that lets a client out: return the nodes that were let out."""
    nodes = []
    monkeypatch.setattr(Operator, "unregister", lambda self, node: nodes.append(node))
    return nodes


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
    refused(
        register(deployment, tmp_path / "mine.pub", "--number", 1), "'mine' is client 0 already"
    )
    refused(register(deployment, tmp_path / "mine.pub", "--name", "new"), "registered as 'mine'")
    assert [name for _, name in asked] == ["mine"]
    assert [file.name for file in deployment.admitted.glob("*.pub")] == ["mine.pub"]
    assert Roster(deployment.roster).read() == {"mine": Registered(str(2**63 + 1), 0)}


def remedy_of(done):
    """Return the arguments of the command that a refusal says to run on purpose."""
    (command,) = re.findall(r"fedssl deploy register (.*)", " ".join(done.output.split()))
    return shlex.split(command)


@pytest.mark.parametrize("name", ["mine", "other"])
def test_a_key_is_replaced_by_the_command_that_the_refusal_names(
    name, deployment, asked, let_out, tmp_path
):
    """A client that lost its key makes another one, with the same name or with a new one."""
    for place in ("first", "second"):
        write_node_key(tmp_path / place / (name if place == "second" else "mine"))
    assert register(deployment, tmp_path / "first" / "mine.pub", "--number", 0).exit_code == 0
    new = tmp_path / "second" / f"{name}.pub"
    done = register(deployment, new, "--number", 0)
    assert done.exit_code == 2
    assert not let_out
    key, *options = remedy_of(done)
    assert key == str(new)
    done = fedssl("deploy", "register", key, *options)
    assert done.exit_code == 0, done.output
    assert "mine: its former key is not let in any more" in done.output
    assert let_out == [str(2**63 + 1)]
    assert [file.name for file in deployment.admitted.glob("*.pub")] == [f"{name}.pub"]
    assert (deployment.admitted / f"{name}.pub").read_bytes() == new.read_bytes()
    assert Roster(deployment.roster).read() == {name: Registered(str(2**63 + 2), 0)}
    # Flower never takes the former key again.
    former = register(deployment, tmp_path / "first" / "mine.pub", "--name", "again")
    refused(former, "KEY", "never let in again", "another --key")
    assert len(asked) == 2


def test_a_key_that_takes_a_name_takes_its_number(deployment, asked, let_out, tmp_path):
    for place in ("first", "second"):
        write_node_key(tmp_path / place / "mine")
    register(deployment, tmp_path / "first" / "mine.pub", "--number", 3)
    done = register(deployment, tmp_path / "second" / "mine.pub", "--replace")
    assert done.exit_code == 0, done.output
    assert "mine: registered, as client 3" in done.output
    assert Roster(deployment.roster).read() == {"mine": Registered(str(2**63 + 2), 3)}


def test_all_keys_that_would_be_let_out_are_named_before(deployment, asked, let_out, tmp_path):
    for place, name in (("first", "mine"), ("first", "other"), ("second", "mine")):
        write_node_key(tmp_path / place / name)
    register(deployment, tmp_path / "first" / "mine.pub", "--number", 0)
    register(deployment, tmp_path / "first" / "other.pub", "--number", 1)
    new = tmp_path / "second" / "mine.pub"
    done = register(deployment, new, "--number", 1)
    refused(done, "'mine' has another key already", "let that key and 'other' out")
    assert register(deployment, new, "--number", 1, "--replace").exit_code == 0
    assert let_out == [str(2**63 + 1), str(2**63 + 2)]
    assert Roster(deployment.roster).read() == {"mine": Registered(str(2**63 + 3), 1)}


def test_a_client_changes_its_number_on_purpose_only(deployment, asked, let_out, tmp_path):
    write_node_key(tmp_path / "mine")
    mine = tmp_path / "mine.pub"
    register(deployment, mine, "--number", 0)
    assert register(deployment, mine).exit_code == 0  # again, and nothing changes
    done = register(deployment, mine, "--number", 1, "--replace")
    assert done.exit_code == 0, done.output
    assert not let_out
    assert Roster(deployment.roster).read() == {"mine": Registered(str(2**63 + 1), 1)}


def test_a_key_that_the_superlink_refuses_replaces_nothing(
    deployment, asked, let_out, monkeypatch, tmp_path
):
    for place in ("first", "second"):
        write_node_key(tmp_path / place / "mine")
    first = tmp_path / "first" / "mine.pub"
    register(deployment, first, "--number", 0)

    def register_refused(self, public_key, name):
        raise RunFailed("refused")

    monkeypatch.setattr(Operator, "register", register_refused)
    assert register(deployment, tmp_path / "second" / "mine.pub", "--replace").exit_code == 1
    assert not let_out
    assert [file.name for file in deployment.admitted.glob("*.pub")] == ["mine.pub"]
    assert (deployment.admitted / "mine.pub").read_bytes() == first.read_bytes()
    assert Roster(deployment.roster).read() == {"mine": Registered(str(2**63 + 1), 0)}


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
    """Join a server without starting a client; return the outcome, and what would have been kept running and how."""
    write_node_key(tmp_path / "mine")
    write_certificates(tmp_path / "certificates", ())
    kept = []

    def keep(command, started, pause_after):
        kept.append((command, pause_after))
        return 1

    monkeypatch.setattr("fedssl.app.deploy.keeper.keep", keep)

    def join(behind, *options, number=0):
        folder = tmp_path / "certificates"
        with Server(behind, folder) as server:
            arguments = ["--number", number, "--key", tmp_path / "mine", "--ca", folder / "ca.crt"]
            return fedssl("deploy", "join", server.address, *arguments, *options), kept

    return join


@pytest.mark.parametrize(("behind", "words"), [(30, "3[01] s ahead"), (-400, "(399|400) s behind")])
def test_a_client_whose_clock_flower_would_refuse_does_not_start(behind, words, joining):
    done, kept = joining(behind)
    assert done.exit_code == 1
    assert re.search(words, done.output)
    assert "Set this host's clock" in done.output
    assert not kept


def test_a_clock_that_is_somewhat_behind_is_said_and_joins(joining):
    done, kept = joining(-100)
    assert re.search("(99|100) s behind", done.output)
    assert kept


def test_a_client_that_was_lost_is_started_again_and_one_with_an_error_at_once_is_not(joining):
    done, ((_, pause_after),) = joining(0)
    assert done.exit_code == 1
    assert "the client ended with exit code 1" in done.output
    assert pause_after(1, 1) is None  # a wrong option, say
    assert pause_after(1, 0) is None
    assert pause_after(1, LOST) == pause_after(1, -9) == pause_after(2, 1) == PAUSE


def test_a_client_whose_key_is_refused_says_once_what_to_do_and_goes_on_trying(
    joining, tmp_path, capsys
):
    _, ((_, pause_after),) = joining(0, number=3)
    capsys.readouterr()
    assert pause_after(1, REFUSED) == pause_after(2, REFUSED) == REFUSED_PAUSE
    (said,) = capsys.readouterr().out.splitlines()
    assert f"send {tmp_path / 'mine'}.pub to the deployment's operator" in said
    assert "fedssl deploy register mine.pub --number 3." in said
    assert "goes on trying every 10 s" in said
    assert pause_after(3, LOST) == PAUSE
    pause_after(4, REFUSED)
    assert "does not let this client in" in capsys.readouterr().out  # after it was let in once


@pytest.mark.parametrize(
    ("code", "shown", "seen"), [(2004, False, True), (2003, True, False), (20041, True, False)]
)
def test_flowers_message_on_a_refused_key_is_seen_and_hidden(code, shown, seen):
    refusal = Refusal()
    said = f"Exit Code: 305\nFailed to initialize the connection.\n[code: {code}] Failed."
    assert refusal.filter(logging.makeLogRecord({"msg": said})) == shown
    assert refusal.was_seen == seen


def port_of(command):
    return int(command[command.index("--port") + 1])


def test_two_clients_on_one_host_get_ports_of_their_own(joining):
    _, kept = joining(0)
    _, kept = joining(0)
    first, second = (port_of(command) for command, _ in kept)
    assert first != second


def test_a_port_that_is_taken_or_none_is_refused_and_the_option_is_named(joining):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done, kept = joining(0, "--port", port)
        refused(done, "--port", f"{port} is taken by another process", "leave the option out")
    refused(joining(0, "--port", 70000)[0], "--port", "70000 is not a port")
    assert not kept
    _, kept = joining(0, "--port", port)
    assert port_of(kept[0][0]) == port


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--privacy-clipping-norm", 0), "--privacy-clipping-norm: is 0"),
        (("--privacy-noise-multiplier", -1), "--privacy-noise-multiplier: is -1"),
        (("--privacy-rounds", -1), "--privacy-rounds: is -1"),
    ],
)
def test_a_floor_that_makes_no_sense_is_refused_before_the_client_starts(options, said, joining):
    done, kept = joining(0, *options)
    refused(done, said)
    assert not kept


@pytest.mark.parametrize("name", ["mine.pub", "certificates/ca.crt", "certificates"])
def test_what_is_no_private_key_is_refused_and_leaves_nothing(name, joining, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    done, kept = joining(0, "--key", tmp_path / name)
    refused(done, "--key: ", name)
    missing, _ = joining(0, "--key", tmp_path / "new.pub")
    refused(missing, "is the name of a public key", "name the private key")
    assert not kept
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_authority_of_the_server_is_refused_and_leaves_nothing(joining, tmp_path):
    write_certificates(tmp_path / "another", ())
    before = sorted(tmp_path.rglob("*"))
    cases = {
        "mine.pub": "holds no certificate",
        "certificates": "cannot be read",
        "not-there": "there is nothing at",
        "another/ca.crt": "does not verify the server at 127.0.0.1:",
    }
    for name, said in cases.items():
        done, kept = joining(0, "--ca", tmp_path / name)
        refused(done, "--ca: ", said)
        assert "goes on trying" not in done.output
        assert not kept
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "address",
    ["localhost", "localhost:", ":9443", "https://localhost:9443", "[::1:9443", "h:70000"],
)
def test_an_address_that_is_not_host_and_port_is_refused_before_a_key_is_made(address, tmp_path):
    arguments = ("--number", 0, "--key", tmp_path / "mine", "--ca", tmp_path / "ca.crt")
    refused(fedssl("deploy", "join", address, *arguments), "SERVER", "is not HOST:PORT")
    assert not any(tmp_path.iterdir())


def test_a_client_joins_with_its_choice_about_bad_images(joining):
    _, kept = joining(0)
    _, kept = joining(0, "--bad-images", "skip")
    first, second = (parse_config_args([command[-1]]) for command, _ in kept)
    assert "bad-images" not in first
    assert second["bad-images"] == "skip"


def test_a_number_that_is_not_the_keys_ends_the_client_at_once(joining, monkeypatch):
    _, ((_, pause_after),) = joining(0)
    assert pause_after(1, WRONG_NUMBER) is pause_after(7, WRONG_NUMBER) is None
    monkeypatch.setattr(own_number, "find_false_number", lambda *arguments: "is 0, but bound to 1")
    done, kept = joining(0)
    refused(done, "--number: is 0, but bound to 1")
    assert len(kept) == 1


def test_a_roster_of_another_version_moves_to_where_the_gate_reads_it(deployment):
    Roster(deployment.roster).add("mine", Registered("5", 1))
    deployment.roster.rename(deployment.folder / ROSTER)
    assert Deployment.open(deployment.folder).roster.parent == deployment.admitted
    assert Roster(deployment.roster).read() == {"mine": Registered("5", 1)}


def test_a_client_counts_from_0(joining):
    refused(joining(0, number=-1)[0], "--number", "is -1")


def test_what_is_submitted_says_whose_numbers_are_bound(deployment):
    roster = Roster(deployment.roster)
    roster.add("mine", Registered(str(2**63 + 1), 0))
    roster.add("any", Registered("5", None))
    assert json.dumps(dict(roster.numbers())) == f'{{"{2**63 + 1}": 0}}'
    assert 'nodes = ""' in (deployment.app / "pyproject.toml").read_text()
