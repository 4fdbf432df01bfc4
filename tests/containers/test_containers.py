"""A federation in containers: the bits of a simulation in the same image, few rights, and survival of killed parts.

These tests need a Docker engine and the image `fedssl`. `make test` leaves them out; `make test-containers` runs them.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from fedssl.app.deploy.deployment import CONTAINERS_USER
from tests.helpers import command, fedssl, small_toml

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

FEDERATION = {"clients": 2, "sample": 2}
SERVICES = ("superlink", "executor", "gate", "client-0", "client-1")

KILL = """
import os, pathlib, signal
for path in pathlib.Path("/proc").glob("[0-9]*"):
    if path.name != str(os.getpid()) and path.name != "1":
        os.kill(int(path.name), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("containers") / "deployment"
    assert fedssl("deploy", "init", "--folder", path).exit_code == 0
    done = deploy(path, "up")
    assert done.returncode == 0, done.stdout + done.stderr
    yield path
    assert deploy(path, "down").returncode == 0
    assert not compose(path, "ps", "--all", "--quiet").strip()


def deploy(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    parts = command("deploy", *arguments, "--folder", folder)
    return subprocess.run(parts, capture_output=True, text=True, timeout=600)


def docker(*arguments: object) -> str:
    done = subprocess.run(["docker", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compose(folder: Path, *arguments: object) -> str:
    return docker("compose", "--file", folder / "docker-compose.yml", *arguments)


def inspected(folder: Path, service: str) -> dict:
    (found,) = json.loads(
        docker("inspect", compose(folder, "ps", "--all", "--quiet", service).strip())
    )
    return found


def inside(folder: Path, script: str) -> str:
    return compose(folder, "run", "--rm", "--no-deps", "-T", "run", "sh", "-c", script)


def simulated(folder: Path, file: Path) -> dict[str, str]:
    """Return the checksums of a simulation of the same file in the same image."""
    here = folder / "submitted" / file.name
    here.write_text(file.read_text())
    said = inside(
        folder,
        f"cd /tmp && fedssl run /deployment/submitted/{file.name} --engine serial --plain --out /tmp/s >/dev/null "
        "&& cd /tmp/s && sha256sum *.safetensors",
    )
    return {name: checksum for checksum, name in (line.split() for line in said.splitlines())}


def recorded(folder: Path, name: str) -> tuple[Path, dict[str, str]]:
    (path,) = (folder / "runs" / name).iterdir()
    said = subprocess.run(
        "sha256sum *.safetensors", shell=True, cwd=path, capture_output=True, text=True
    )
    return path, {name: checksum for checksum, name in map(str.split, said.stdout.splitlines())}


def test_three_rounds_give_the_bits_of_a_simulation_in_the_same_image(folder, tmp_path):
    file = small_toml(tmp_path / "parity.toml", name="parity", rounds=3, federation=FEDERATION)
    done = deploy(folder, "run", file, "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    path, checksums = recorded(folder, "parity")
    assert checksums == simulated(folder, file)
    assert checksums
    assert (path / "summary.json").exists()


def test_containers_have_few_rights(folder):
    for service in SERVICES:
        found = inspected(folder, service)
        host, config = found["HostConfig"], found["Config"]
        assert config["User"] not in ("", "0", "root", "0:0"), service
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["Memory"] > 0
        assert not host["Privileged"]
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        secrets = [*folder.glob("keys/client-?"), folder / "executor.secret"]
        lines = [line for p in secrets for line in p.read_text().splitlines() if len(line) > 40]
        assert not any(line in json.dumps(found) for line in lines)
        ports = [p for bound in found["NetworkSettings"]["Ports"].values() for p in bound or ()]
        assert all(port["HostIp"] == "127.0.0.1" for port in ports)
        assert bool(ports) == (service == "gate")
    if os.getuid() == 0:
        assert (
            inspected(folder, "client-0")["Config"]["User"]
            == f"{CONTAINERS_USER}:{CONTAINERS_USER}"
        )


def test_a_client_sees_its_own_key_and_the_gate_only(folder):
    listed = compose(folder, "exec", "-T", "client-0", "ls", "/run/secrets").split()
    assert sorted(listed) == ["ca.crt", "client-0"]
    script = "import socket; socket.create_connection(('superlink', 8000), 3)"
    done = subprocess.run(
        ["docker", "compose", "--file", str(folder / "docker-compose.yml"), "exec", "-T", "client-0", "python", "-c", script],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "gaierror" in done.stderr


def test_the_state_of_all_is_shown(folder):
    done = deploy(folder, "status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(healthy)") == 4
    assert done.stdout.count("online") == 2


def test_a_run_survives_the_death_of_its_superlink_and_of_a_client(folder, tmp_path):
    file = small_toml(tmp_path / "killed.toml", name="killed", rounds=6, federation=FEDERATION)
    process = subprocess.Popen(
        command("deploy", "run", file, "--plain", "--folder", folder),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        for round, service in ((1, "superlink"), (3, "client-1")):
            if line.startswith(f"round {round}/"):
                time.sleep(1)
                kill = ["docker", "compose", "--file", str(folder / "docker-compose.yml"), "exec", "-T", service, "python", "-c", KILL]  # fmt: skip
                subprocess.run(kill, capture_output=True)
    assert process.wait(60) == 0, "".join(said)
    print("".join(said))
    for service in ("superlink", "client-1"):
        assert inspected(folder, service)["RestartCount"] >= 1
    path, checksums = recorded(folder, "killed")
    rounds = pd.read_csv(path / "rounds.csv")
    assert rounds["round"].tolist() == list(range(1, 7))
    if rounds.clients_ok.eq(
        2
    ).all():  # else a reply was given up, and its client left out of that round
        assert checksums == simulated(folder, file)


def test_no_key_is_in_the_image():
    find = "find / -xdev -name '*.key' -o -xdev -name 'client-*' -o -xdev -name '*.pem' -path '*fedssl*' 2>/dev/null || true"
    listed = docker("run", "--rm", "--network", "none", "fedssl", "sh", "-c", find)
    assert not listed.strip()
    assert (
        docker("image", "inspect", "fedssl", "--format", "{{.Config.User}}").strip()
        == "10001:10001"
    )
