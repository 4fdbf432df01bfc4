"""Clients that several processes train together: the same bits on every engine, and nothing left of a team that is lost."""

import json
import os
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedssl.app.simulation import Engine
from fedssl.clients import team_processes
from fedssl.clients.client_app import app
from fedssl.core.errors import RunFailed
from fedssl.engine.local_grid import Apps, Patience
from fedssl.engine.serial_grid import SerialGrid
from fedssl.server.app import serve
from tests.helpers import command, in_a_process, sha256, small_experiment, small_toml

TEAM = ("--set", "engine.cpus_per_client=2")


def members_of(tmp):
    """Return the further processes of teams whose temporary folder is this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_text()
            variables = (entry / "environ").read_text().split("\0")
        except OSError:
            continue
        if "fedssl.clients.team_member" in words and f"TMPDIR={tmp}" in variables:
            found.append(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def own_tmp(monkeypatch):
    """Give the runs a folder of their own for temporary files, with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def wait_until_nothing_is_left(tmp):
    """Wait for the end of all further processes of teams, which follow a worker that Ray ends; teams leave no file."""
    until = time.monotonic() + 20
    while members_of(tmp):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert not list(tmp.glob("fedssl-team-*"))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    return small_toml(folder / "e.toml", rounds=3, method={"kind": "fixmatch"})


@pytest.fixture(scope="module")
def run_alone(tmp_path_factory, experiment):
    out = tmp_path_factory.mktemp("alone") / "run"
    in_a_process("run", experiment, "--plain", "--engine", "serial", *TEAM, "--out", out)
    return sha256(out / "model.safetensors")


@pytest.mark.parametrize("engine", ["serial", "ray", "flower"])
def test_a_team_of_two_has_the_same_bits_on_every_engine(
    tmp_path, own_tmp, experiment, run_alone, engine
):
    out = tmp_path / engine
    in_a_process("run", experiment, "--plain", "--engine", engine, *TEAM, "--out", out)
    assert sha256(out / "model.safetensors") == run_alone
    wait_until_nothing_is_left(own_tmp)


def test_it_is_killed_and_goes_on_to_the_same_bits(tmp_path, own_tmp):
    """A process of the team first, whose client is tried again; then the run itself, which is resumed."""
    experiment = small_toml(tmp_path / "e.toml", rounds=15, method={"kind": "fixmatch"})
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

    wait_for(2)
    (member,) = members_of(own_tmp)
    os.kill(member, signal.SIGKILL)
    wait_for(5)
    (other,) = members_of(own_tmp)
    assert other != member
    run.kill()
    run.wait()
    wait_until_nothing_is_left(own_tmp)
    in_a_process(*arguments, "--out", out, "--resume")
    assert sha256(out / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["event"] == "client_failed"]


def test_training_that_diverges_is_told_as_without_a_team():
    experiment = small_experiment(method={"kind": "fixmatch"}, train={"lr": 1e30}, rounds=1)
    with pytest.raises(RunFailed, match="FloatingPointError: training diverged") as raised:
        serve(experiment, SerialGrid(Apps(app), 6, "cpu,cpu"), [])
    assert "team" not in str(raised.value)


def test_a_client_is_tried_again_if_one_process_of_its_team_fails(tmp_path):
    def served(marker):
        method = {"kind": "tests.plugins.half_broken", "marker": str(marker)}
        grid = SerialGrid(Apps(app), 6, "cpu,cpu", patience=Patience(retries=1))
        return serve(small_experiment(method=method, rounds=1), grid, [])

    failed_before = tmp_path / "failed"
    failed_before.touch()
    expected, result = served(failed_before), served(tmp_path / "not yet")
    assert (tmp_path / "not yet").exists()
    for name, array in expected.model.arrays.items():
        assert array.tobytes() == result.model.arrays[name].tobytes()


def test_the_process_that_failed_says_why_and_ends_in_order(capfd):
    """Process 1 of three only lost its sum with process 2, which has the reason."""
    method = {"kind": "tests.plugins.half_broken", "rank": 2}
    with pytest.raises(RunFailed, match="out of memory: no memory for this process"):
        serve(
            small_experiment(method=method, rounds=1), SerialGrid(Apps(app), 6, "cpu,cpu,cpu"), []
        )
    assert "Fatal Python error" not in capfd.readouterr().err


def test_a_process_that_takes_no_work_is_not_waited_for_forever(monkeypatch):
    """A message of 8 MB fits in no socket, so sending it to a stopped process must have a limit."""
    monkeypatch.setattr(team_processes, "HANG", 1)
    team = team_processes.TeamProcesses(("cpu", "cpu"))
    try:
        (member,) = team._members
        os.kill(member.process.pid, signal.SIGSTOP)
        with pytest.raises(team_processes.TeamLost, match="did not take its work within 1 s"):
            team._send(member, bytes(8_000_000))
    finally:
        team.close()


def test_files_of_the_current_folder_do_not_get_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise SystemExit('not the torch that was meant')")
    monkeypatch.chdir(tmp_path)
    grid = SerialGrid(Apps(app), 6, "cpu,cpu")
    serve(small_experiment(method={"kind": "supervised"}, rounds=1), grid, [])


def test_more_threads_than_cores_are_warned_of(caplog):
    engine = {"kind": "serial", "cpus_per_client": 2}
    experiment = small_experiment(
        method={"kind": "supervised"}, rounds=1, engine=engine, train={"threads": 64}
    )
    with Engine() as machine:
        machine._grid_for(experiment)
    assert "cpus_per_client = 2 with train.threads = 64: 128 threads on" in caplog.text


def test_threads_of_a_process_take_turns_in_a_team():
    """Two runs at once in one process have the results that they have alone."""

    def weights(seed):
        experiment = small_experiment(method={"kind": "supervised"}, rounds=2, seed=seed)
        return serve(experiment, SerialGrid(Apps(app), 6, "cpu,cpu"), []).model.arrays

    alone = [weights(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(weights, (0, 1)))
    for first, second in zip(alone, together, strict=True):
        assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_a_process_that_hangs_costs_no_more_than_the_clients_timeout(tmp_path, own_tmp):
    """The worker that waits for it is ended; so is the rest of the team, and another team trains the client."""
    experiment = small_toml(tmp_path / "e.toml", rounds=8, method={"kind": "fixmatch"})
    arguments = ("run", experiment, "--plain", *TEAM)
    in_a_process(*arguments, "--engine", "serial", "--out", tmp_path / "whole")
    out = tmp_path / "hangs"
    engine = ("--engine", "ray", "--set", "engine.client_timeout=10", "--set", "engine.retries=5")
    run = subprocess.Popen(command(*arguments, *engine, "--out", out), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (out / "rounds.csv").exists() or not members_of(own_tmp):
        assert time.monotonic() < until
        time.sleep(0.02)
    (hanging,) = members_of(own_tmp)
    os.kill(hanging, signal.SIGSTOP)
    assert run.wait(120) == 0
    assert sha256(out / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")
    wait_until_nothing_is_left(own_tmp)
