"""The files of `fedssl deploy init`: certificates that name the server, and keys that only their owner can read."""

import os
import ssl
import tomllib
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.common.config import parse_config_args

from fedssl.app.deploy.containers import as_yaml, compose_file
from fedssl.app.deploy.deployment import CONTAINERS_USER, Deployment, Settings
from fedssl.app.deploy.host import Host
from fedssl.app.deploy.secrets import write_certificates
from tests.helpers import fedssl, refused

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "deployment"
    data = folder.parent / "own images"
    data.mkdir()
    names = ["--name", "fed.example.org", "--name", "10.1.2.3"]
    done = fedssl(
        "deploy", "init", "--folder", folder, "--clients", 3, *names, "--data", f"1={data}"
    )
    assert done.exit_code == 0, done.output
    return Deployment.open(folder)


def test_the_certificate_names_the_server_and_is_the_authoritys(made):
    authority = x509.load_pem_x509_certificate((made.certificates / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((made.certificates / "server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "superlink", "gate", "fed.example.org"} <= set(
        names.get_values_for_type(x509.DNSName)
    )
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert {"127.0.0.1", "10.1.2.3"} <= addresses
    context = ssl.create_default_context(cafile=str(made.certificates / "ca.crt"))
    assert context.get_ca_certs()


def test_the_authoritys_key_is_kept_nowhere(made):
    server_key = (made.certificates / "server.key").read_bytes()
    for path in made.folder.rglob("*"):
        if path.is_file() and path.read_bytes() != server_key:
            assert b"BEGIN PRIVATE KEY" not in path.read_bytes(), path


def test_every_client_has_a_key_of_its_own_that_flower_takes(made):
    publics = set()
    for client in range(3):
        path = made.key(client)
        key = load_ssh_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert isinstance(key.curve, ec.SECP384R1)
        public = path.with_name(f"{path.name}.pub").read_bytes()
        assert load_ssh_public_key(public).public_numbers() == key.public_key().public_numbers()
        publics.add(public)
    assert len(publics) == 3


def test_private_files_are_their_owners_alone(made):
    private = [
        *(made.key(c) for c in range(3)),
        made.certificates / "server.key",
        made.executor_secret,
    ]
    for path in private:
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert (made.folder / ".gitignore").read_text() == "*\n"
    if os.getuid() == 0:
        assert made.key(0).stat().st_uid == CONTAINERS_USER


def test_nothing_is_overwritten(made):
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    refused(
        fedssl("deploy", "init", "--folder", made.folder),
        "--folder",
        "exists and is not overwritten",
    )
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clients", "-1"], ["clients", "greater than or equal to 0"]),
        (["--name", "https://fed.example.org"], ["names", "not a host name"]),
        (["--bind", "everywhere"], ["bind", "not an address"]),
        (["--port", "99999"], ["port", "less than or equal to 65535"]),
        (["--data", "nonsense"], ["--data", "NUMBER=PATH"]),
        (["--data", "0=/not/there"], ["--data", "nothing at /not/there"]),
        (["--data", "7=/tmp"], ["--data", "no client 7 among 2 clients"]),
        (["--data", f"0={__file__}"], ["--data", "neither a folder of images nor an .npz file"]),
    ],
)
def test_bad_input_is_one_message_and_makes_nothing(arguments, words, tmp_path):
    folder = tmp_path / "deployment"
    refused(fedssl("deploy", "init", "--folder", folder, *arguments), *words)
    assert not folder.exists()


@pytest.mark.parametrize(
    "command",
    [["up"], ["status"], ["down"], ["run", "experiments/deployment.toml"], ["register", "x.pub"]],
)
def test_without_a_deployment_every_command_says_so(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = fedssl("deploy", *command, "--folder", tmp_path / "nowhere", "--no-containers")
    refused(done, "there is no deployment", "fedssl deploy init")


def test_without_an_engine_containers_are_refused_with_a_way_out(made, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing is there
    done = fedssl("deploy", "up", "--folder", made.folder)
    refused(done, "containers need Docker", "--no-containers")


def test_the_repositorys_compose_file_is_what_is_written_for_two_clients():
    expected = as_yaml(compose_file(Settings(), "./deployment"), REMARK)
    assert (ROOT / "docker-compose.yml").read_text() == expected


def test_clients_here_skip_bad_images_if_init_says_so(tmp_path):
    folder = tmp_path / "deployment"
    done = fedssl("deploy", "init", "--folder", folder, "--clients", 1, "--bad-images", "skip")
    assert done.exit_code == 0, done.output
    deployment = Deployment.open(folder)
    compose = yaml.safe_load((folder / "docker-compose.yml").read_text())
    commands = [Host(deployment).clients[0].command, compose["services"]["client-0"]["command"]]
    for command in commands:
        assert parse_config_args([command[-1]])["bad-images"] == "skip"
    assert "bad-images" not in as_yaml(compose_file(Settings()), "")  # it is refused unless asked


REMARK = """\
A server and two clients. `fedssl deploy init` makes their certificates and keys in ./deployment, and writes a file like
this for any number of clients. To write this file again: python -m tests.app.deploy.test_making"""


def test_no_service_has_more_rights_than_it_needs(made):
    compose = yaml.safe_load((made.folder / "docker-compose.yml").read_text())
    assert set(compose["services"]) == {"superlink", "executor", "gate", "run", *(f"client-{i}" for i in range(3))}  # fmt: skip
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "mem_limit" in service
        assert service["user"].startswith("${FEDSSL_USER:-")
        assert "privileged" not in service
        assert service["restart"] == ("no" if name == "run" else "unless-stopped")
        assert all("key" not in variable.lower() and "secret" not in variable.lower() for variable in service["environment"])  # fmt: skip
    ports = {
        name: service["ports"]
        for name, service in compose["services"].items()
        if "ports" in service
    }
    assert ports == {"gate": ["127.0.0.1:9443:9443"]}
    assert compose["networks"]["inside"]["internal"]
    assert compose["networks"]["clients"]["internal"]
    for client in range(3):
        service = compose["services"][f"client-{client}"]
        assert service["secrets"] == ["ca.crt", f"client-{client}"]
        assert service["networks"] == ["clients"]
    assert compose["services"]["client-0"]["volumes"] == ["./clients/client-0:/client"]
    own, images = compose["services"]["client-1"]["volumes"]
    assert own == "./clients/client-1:/client"
    assert images.endswith("/own images:/data/own images:ro")
    assert made.client(1).stat().st_mode & 0o777 == 0o700


def test_the_app_that_is_submitted_holds_no_code(made):
    files = [path.name for path in made.app.rglob("*") if path.is_file()]
    assert files == ["pyproject.toml"]
    components = tomllib.loads((made.app / "pyproject.toml").read_text())["tool"]["flwr"]["app"][
        "components"
    ]
    assert components == {
        "serverapp": "fedssl.server.app:app",
        "clientapp": "fedssl.clients.client_app:app",
    }


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("cuda:0,cuda", "is not a list of devices"),
        (",".join(["cpu"] * 1000), "names 1000 cores, but this machine has"),
        ("cuda:77", "names cuda:77, but torch sees"),
    ],
)
def test_devices_that_are_not_there_are_refused(tmp_path, devices, words):
    write_certificates(tmp_path, ())
    arguments = ("--number", 0, "--key", tmp_path / "mine", "--ca", tmp_path / "ca.crt")
    assert fedssl("deploy", "join", "fed.example.org:9443", *arguments).exit_code == 0  # a key
    refused(
        fedssl("deploy", "join", "fed.example.org:9443", *arguments, "--devices", devices),
        "--devices",
        words,
    )


def test_a_key_for_a_client_elsewhere(tmp_path):
    key = tmp_path / "mine"
    done = fedssl(
        "deploy", "join", "fed.example.org:9443", "--number", 0, "--key", key, "--ca", "ca.crt"
    )
    assert done.exit_code == 0
    assert "fedssl deploy register mine.pub" in done.output
    assert key.stat().st_mode & 0o777 == 0o600
    public = load_ssh_public_key(key.with_name("mine.pub").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP384R1)


if __name__ == "__main__":
    (ROOT / "docker-compose.yml").write_text(
        as_yaml(compose_file(Settings(), "./deployment"), REMARK)
    )
