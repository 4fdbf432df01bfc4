"""Keepers are known by their lock, and their processes end with them; a SuperNode's process ends with its loop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fedssl.app.deploy.deployment import Deployment, Settings
from fedssl.app.deploy.host import Host
from fedssl.app.deploy.keeper import is_kept, read_report
from fedssl.app.deploy.services import LOST, REFUSED
from fedssl.core.errors import InputError, RunFailed
from tests.helpers import fedssl, finished, refused
from tests.ports import give_free_ports

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    """Say whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def keeping(tmp_path):
    """Start a keeper of a command; all end with the test."""
    started = []

    def start(command, name="gate", folder=tmp_path):
        file = folder / f"{name}.json"
        parts = [sys.executable, "-m", "fedssl.app.deploy.keeper", str(file), *command]
        keeper = subprocess.Popen(parts, start_new_session=True)
        started.append(keeper)
        until(file.exists)
        return keeper, file, json.loads(file.read_text())["process"]

    yield start
    for keeper in started:
        keeper.terminate()
        keeper.wait(30)


def test_a_process_is_started_again_and_ends_with_its_keeper(keeping):
    keeper, file, first = keeping(SLEEP)
    said = read_report(file)
    assert said is not None
    assert (said["keeper"], said["starts"]) == (keeper.pid, 1)
    os.kill(first, signal.SIGKILL)
    until(lambda: (read_report(file) or {"starts": 0})["starts"] == 2)
    second = json.loads(file.read_text())["process"]
    keeper.kill()
    keeper.wait()
    until(lambda: not is_alive(second))
    assert read_report(file) is None
    assert file.exists()  # nobody was left to remove it


def test_one_service_has_one_keeper(keeping):
    _, file, _ = keeping(SLEEP)
    parts = [sys.executable, "-m", "fedssl.app.deploy.keeper", str(file), *SLEEP]
    second = subprocess.run(parts, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert "another keeper already keeps" in second.stderr
    assert is_kept(file)


@pytest.fixture
def deployment(tmp_path):
    made = Deployment.create(tmp_path / "deployment", Settings(clients=0))
    give_free_ports(made.folder)
    return Deployment.open(made.folder)


def test_a_stale_file_with_a_bystanders_number_ends_nobody(deployment):
    with subprocess.Popen(SLEEP, start_new_session=True) as bystander:
        try:
            stale = {"keeper": bystander.pid, "process": bystander.pid, "starts": 1}
            file = deployment.processes / "gate.json"
            file.write_text(json.dumps(stale))
            host = Host(deployment)
            assert not any(state.runs for state in host.states())
            host.stop()
            time.sleep(0.3)
            assert is_alive(bystander.pid)
            assert not file.exists()
        finally:
            bystander.kill()


def test_down_says_so_where_a_killed_keeper_has_left_its_process(deployment, monkeypatch):
    monkeypatch.setattr("fedssl.app.deploy.host.PATIENCE", 0.3)
    file = deployment.processes / "gate.json"
    file.write_text(json.dumps({"keeper": 1, "process": 1, "starts": 1}))
    port = deployment.settings.port
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(RunFailed, match=f"still has its port {port}"),
    ):
        Host(deployment).stop()
    Host(deployment).stop()
    assert not file.exists()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("superlink", "superlink_port"), ("gate", "port"), ("client-1", "client_port")],
)
def test_a_port_that_is_taken_is_named_with_its_setting(name, setting, tmp_path):
    made = Deployment.create(tmp_path / "deployment", Settings(clients=2))
    give_free_ports(made.folder)
    host = Host(Deployment.open(made.folder))
    (service,) = (each for each in (*host.server, *host.clients) if each.name == name)
    assert service.health is not None
    port = urlsplit(service.health).port
    said = f"port {port} of {name} is taken by another process; .*set another `{setting}` in"
    with socket.create_server(("127.0.0.1", port or 0)), pytest.raises(InputError, match=said):
        host.start([service])


def test_up_starts_nothing_if_any_port_is_taken_or_a_path_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(Host, "_spawn", lambda self, service: pytest.fail(service.name))
    folder, images, reference = (tmp_path / name for name in ("deployment", "images", "reference"))
    images.mkdir()
    reference.mkdir()
    data = ("--data", f"1={images}", "--server-data", reference)
    finished(fedssl("deploy", "init", "--folder", folder, "--no-containers", *data))
    give_free_ports(folder)
    settings = Deployment.open(folder).settings
    for port in (settings.port, settings.client_port + 1):
        with socket.create_server(("127.0.0.1", port)):
            refused(fedssl("deploy", "up", "--folder", folder), f"port {port} of")
    own = Deployment.open(folder).client(0)
    for path, setting in ((images, "data.1"), (reference, "server_data"), (own, "--folder")):
        path.rename(tmp_path / "away")
        done = fedssl("deploy", "up", "--folder", folder)
        refused(done, f"{setting}: there is nothing at", str(path))
        (tmp_path / "away").rename(path)


def test_down_ends_a_gate_whose_keeper_was_killed(deployment, keeping):
    listen = f"import socket, time; s = socket.create_server(('127.0.0.1', {deployment.settings.port})); time.sleep(600)"
    keeper, _, process = keeping([sys.executable, "-c", listen], folder=deployment.processes)
    keeper.kill()
    keeper.wait()
    Host(deployment).stop()
    until(lambda: not is_alive(process))


STAND_IN = """
import logging, sys, threading, time
from fedssl.app.deploy import supernode
def flower_supernode():
    threading.Thread(target=time.sleep, args=(600,)).start()  # as Flower's own API does
    {ending}
supernode.flower_supernode = flower_supernode
supernode.main()
"""


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("return", LOST, "lost its server"),
        ("sys.exit(0)", 0, ""),
        ("sys.exit(1)", 1, ""),
        ("sys.exit('no key')", 1, "no key"),
        (
            "logging.getLogger('flwr').error('[code: 2004] Failed'); sys.exit(1)",
            REFUSED,
            "it is not registered, or another process uses it",
        ),
        ("raise ValueError('odd')", LOST, "ValueError: odd"),
    ],
)
def test_a_supernode_whose_loop_ends_ends_though_a_thread_of_its_own_runs_on(ending, code, words):
    script = STAND_IN.format(ending=ending)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert words in done.stderr
    assert "2004" not in done.stderr
