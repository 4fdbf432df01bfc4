"""Clients that several processes train together: the same bits on every engine, and nothing left of a team that is lost."""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from fedssl.clients.client_app import app
from fedssl.core.errors import RunFailed
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.server.app import serve
from tests.helpers import command, in_a_process, sha256, small_experiment, small_toml

TEAM = ("--set", "engine.cpus_per_client=2")


def members_of(pid):
    """Return the processes of teams below a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_text()
        except OSError:
            continue
        if "fedssl.clients.team_member" in words and parent == pid:
            found.append(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def own_tmp(monkeypatch):
    """Give the runs a folder of their own for temporary files, with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def folders(tmp):
    return list(tmp.glob("fedssl-team-*"))


@pytest.fixture
def experiment(tmp_path):
    return small_toml(tmp_path / "e.toml", rounds=3, method={"kind": "fixmatch"})


@pytest.fixture
def run_alone(tmp_path, experiment):
    in_a_process(
        "run", experiment, "--plain", "--engine", "serial", *TEAM, "--out", tmp_path / "alone"
    )
    return sha256(tmp_path / "alone" / "model.safetensors")


@pytest.mark.parametrize("engine", ["serial", "ray", "flower"])
def test_a_team_of_two_has_the_same_bits_on_every_engine(
    tmp_path, own_tmp, experiment, run_alone, engine
):
    out = tmp_path / engine
    in_a_process("run", experiment, "--plain", "--engine", engine, *TEAM, "--out", out)
    assert sha256(out / "model.safetensors") == run_alone
    until = time.monotonic() + 20  # a worker that Ray ends leaves this to the rest of its team
    while folders(own_tmp):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_it_is_killed_and_goes_on_to_the_same_bits(tmp_path, own_tmp):
    """A process of the team first, whose client is tried again; then the run itself, which is resumed."""
    experiment = small_toml(tmp_path / "e.toml", rounds=60, method={"kind": "fixmatch"})
    arguments = ("run", experiment, "--plain", "--engine", "serial", *TEAM)
    in_a_process(*arguments, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    run = subprocess.Popen(command(*arguments, "--out", out), stderr=subprocess.DEVNULL)
    rounds = out / "rounds.csv"

    def wait_for(number):
        until = time.monotonic() + 200
        while not rounds.exists() or rounds.read_bytes().count(b"\n") <= number:
            assert run.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)

    wait_for(3)
    (member,) = members_of(run.pid)
    os.kill(member, signal.SIGKILL)
    wait_for(20)
    (other,) = members_of(run.pid)
    assert other != member
    run.kill()
    run.wait()
    until = time.monotonic() + 20
    while Path(f"/proc/{other}").exists() or folders(own_tmp):
        assert time.monotonic() < until
        time.sleep(0.1)
    in_a_process(*arguments, "--out", out, "--resume")
    assert sha256(out / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["event"] == "client_failed"]


def test_training_that_diverges_is_told_as_without_a_team():
    experiment = small_experiment(method={"kind": "fixmatch"}, train={"lr": 1e30}, rounds=1)
    with pytest.raises(RunFailed, match="FloatingPointError: training diverged") as raised:
        serve(experiment, SerialGrid(Apps(app), 6, "cpu,cpu"), [])
    assert "team" not in str(raised.value)
