"""A federation of processes on this host, with TLS and keys: the bits of a simulation, and admission."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result

from fedssl.app.deploy.deployment import Deployment
from fedssl.app.deploy.ports import find_free_ports
from fedssl.app.deploy.secrets import write_node_key
from fedssl.app.deploy.services import ENVIRONMENT
from fedssl.app.simulation import Engine
from fedssl.record.run_directory import RunDirectory
from tests.helpers import (
    command,
    fedssl,
    finished,
    in_a_process,
    sha256,
    small_experiment,
    small_toml,
)
from tests.ports import give_free_ports

FEDERATION = {"clients": 2, "sample": 2}

pytestmark = pytest.mark.timeout(1200)


def deploy(folder: Path, *arguments: object) -> Result:
    return fedssl("deploy", *arguments, "--folder", folder, "--no-containers")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation") / "deployment"
    own = ("--allowed-plugins", "tests.plugins")
    assert fedssl("deploy", "init", "--folder", folder, *own).exit_code == 0
    give_free_ports(folder)
    in_a_process("deploy", "up", "--folder", folder, "--no-containers")  # which the rest outlives
    yield Deployment.open(folder)
    finished(deploy(folder, "down"))
    assert not list((folder / "processes").glob("*.json"))


def kept(deployment: Deployment, name: str) -> dict[str, int]:
    found: dict[str, int] = json.loads((deployment.processes / f"{name}.json").read_text())
    return found


def simulated(experiment, path: Path) -> Path:
    with Engine() as engine:
        engine.run(experiment, [RunDirectory(path)])
    return path


def recorded(deployment: Deployment, name: str) -> Path:
    (path,) = (deployment.runs / name).iterdir()
    return path


PHASES = [
    {
        "rounds": 2, "train": {"lr": 0.005},
        "method": {"kind": "fedmatch", "threshold": 0.1, "unlabeled_ratio": 2},
        "strategy": {"kind": "fedmatch", "delta_threshold": 1e-4},
    },
    {
        "rounds": 1, "method": {"kind": "proxyfl", "threshold": 0.2, "unlabeled_ratio": 2},
        "strategy": {"kind": "proxyfl", "epochs": 3},
    },
    {"rounds": 2, "strategy": "scaffold", "method": {"kind": "tests.plugins.frozen"}},
    {
        "rounds": 2, "strategy": "feddyn", "method": {"kind": "simclr", "projection": [8, 8]},
        "server": {"evaluator": {"kind": "linear_probe", "per_class": 1}},
    },
    {
        "rounds": 1, "strategy": {"kind": "rscfed", "distance_weight": 10.0},
        "method": {"kind": "fine_tune", "start": "backbone"},
    },
    {"rounds": 1, "strategy": "fedavgm", "method": {"kind": "semifl", "threshold": 0.9}},
    {"rounds": 1, "method": "distill", "model": {"kind": "cnn", "widths": [2, 3], "hidden": 5}},
]  # fmt: skip
"""Contents that differ by client, work at the server, corrections, clients that are asked three times a round, clients that may
sit out, a judge that trains, networks that begin with another phase's weights, and a teacher that is sent once."""


def test_a_run_gives_the_simulations_bits_with_every_kind_of_strategy_and_phase(running, tmp_path):
    settings = {"name": "parity", "federation": FEDERATION, "rounds": None, "phases": PHASES}
    done = deploy(running.folder, "run", small_toml(tmp_path / "e.toml", **settings), "--plain")
    finished(done)
    assert "round 10/10 distill: accuracy " in done.stdout
    assert "clients 2/2" in done.stdout
    here = recorded(running, "parity")
    there = simulated(small_experiment(**settings), tmp_path / "s")
    for name in ("model.safetensors", "ema.safetensors"):
        assert sha256(here / name) == sha256(there / name)
    columns = ["round", "client", "status", "num_steps", "bytes_up"]
    mine, theirs = (pd.read_csv(path / "clients.csv")[columns] for path in (here, there))
    pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    assert (mine[mine["round"].eq(8)].groupby("round").size() == 6).all()
    columns = [
        "round",
        "server_accuracy",
        "loss",
        "pseudo_label_coverage",
        "bytes_up",
        "bytes_down",
        "clients_ok",
    ]
    mine, theirs = (pd.read_csv(path / "rounds.csv")[columns] for path in (here, there))
    pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    said = json.loads((here / "environment.json").read_text())["command"]
    assert said[said.index("--token") + 1] == "..."  # Flower passes one to the server app
    page = {"evaluation.json", "report.html"}  # written by `fedssl run` and `fedssl deploy run`
    assert {path.name for path in there.iterdir()} | page == {p.name for p in here.iterdir()}


def test_a_run_that_fails_is_a_failure_with_its_reason(running, tmp_path):
    file = small_toml(
        tmp_path / "e.toml", name="failing", federation=FEDERATION,
        method={"kind": "tests.plugins.raising", "sizes": list(range(1000))},
    )  # fmt: skip
    parts = command("deploy", "run", file, "--plain", "--folder", running.folder)
    done = subprocess.run(parts, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout
    assert "broken on purpose" in done.stdout
    assert "all clients of round 1 failed" in done.stderr
    assert "finished:failed" in done.stderr


def test_too_many_clients_are_refused_before_anything_runs(running, tmp_path):
    done = deploy(running.folder, "run", small_toml(tmp_path / "e.toml", name="many"))
    assert done.exit_code == 2
    assert "federation.clients: is 6, but only 2 clients are connected" in done.stderr
    assert not (running.runs / "many").exists()


def test_phases_that_do_not_fit_are_refused_before_anything_runs(running, tmp_path):
    phases = [
        {"rounds": 1, "method": {"kind": "simclr", "projection": [8, 8]}},
        {"rounds": 1, "method": "fine_tune"},
        {"rounds": 1, "method": "semifl"},
    ]
    settings = {"name": "lost", "federation": FEDERATION, "rounds": None, "phases": phases}
    done = deploy(running.folder, "run", small_toml(tmp_path / "e.toml", **settings))
    assert done.exit_code == 2
    assert "phases[2].method.kind: is 'semifl', whose classifier would lose the head" in done.stderr
    assert not (running.runs / "lost").exists()


def test_the_state_of_all_is_shown(running):
    done = deploy(running.folder, "status")
    finished(done)
    assert done.stdout.count("runs, healthy") == 4
    assert done.stdout.count("online") == 2


def turned_away(deployment: Deployment, words: str, *arguments: object) -> str:
    """Return what a client says until some words, by which it is not let in."""
    gate = f"127.0.0.1:{deployment.settings.port}"
    (port,) = find_free_ports(1)
    tools = Path(sys.executable).parent
    process = subprocess.Popen(
        [str(tools / "flower-supernode"), "--superlink", gate, "--port", str(port), "--max-retries", "1",
         *("--node-config", "partition-id=0"), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, **ENVIRONMENT, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    said = ""
    assert process.stdout is not None
    try:
        for line in process.stdout:  # not to its end: a process of its own may hold the pipe
            said += line
            if words in said:
                break
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return said


def test_who_has_no_key_an_unknown_key_or_no_authority_is_not_let_in(running, tmp_path):
    authority = running.certificates / "ca.crt"
    trusting = ("--root-certificates", authority)
    assert "2001" in turned_away(running, "2001", *trusting)
    write_node_key(tmp_path / "unknown")
    unknown = ("--auth-supernode-private-key", tmp_path / "unknown")
    assert "2004" in turned_away(running, "2004", *trusting, *unknown)
    known = ("--auth-supernode-private-key", running.key(0))
    distrusting = "CERTIFICATE_VERIFY_FAILED"
    assert distrusting in turned_away(running, distrusting, *known)


def test_the_gate_lets_nobody_start_a_run(running):
    context = ssl.create_default_context(cafile=str(running.certificates / "ca.crt"))
    for path in ("control/start-run", "control/list-runs", "runtime/acquire-task"):
        url = f"https://127.0.0.1:{running.settings.port}/v1/{path}"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, b"", method="POST"), context=context)
        assert refused.value.code == 404


def test_no_secret_is_in_a_log(running):
    secrets = [
        running.executor_secret,
        running.certificates / "server.key",
        running.key(0),
        running.key(1),
    ]
    lines = [line for path in secrets for line in path.read_text().splitlines() if len(line) > 40]
    lines = [line for line in lines if "PRIVATE KEY" not in line]
    for log in running.logs.iterdir():
        text = log.read_text(errors="replace")
        assert not any(line in text for line in lines), log


def stateful(marks: Path | None) -> dict[str, object]:
    """Return settings of a run that clients keep state for, and that says when they train (`tests.plugins.slow`)."""
    return {
        "method": {
            "kind": "tests.plugins.slow",
            "unlabeled_ratio": 2,
            "marks": None if marks is None else str(marks),
        },
        "train": {"keep_momentum": True},
        "strategy": "scaffold",
        "federation": FEDERATION,
        "rounds": 4,
    }


def begin(deployment: Deployment, folder: Path, name: str) -> tuple[Path, subprocess.Popen[str]]:
    """Start `fedssl deploy run` of such an experiment; return its file and the process."""
    (folder / "marks").mkdir()
    file = small_toml(folder / "e.toml", name=name, **stateful(folder / "marks"))
    parts = command("deploy", "run", file, "--plain", "--folder", deployment.folder)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return file, subprocess.Popen(parts, **output)


def wait_until_both_train(file: Path, round: int, process: subprocess.Popen[str]) -> None:
    """Wait until both clients train in a round: their requests have arrived, and their replies are not under way."""
    until = time.monotonic() + 300
    while len(list((file.parent / "marks").glob(f"{round}-*"))) < 2:
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_run_survives_the_death_of_its_superlink_and_of_a_client(running, tmp_path):
    """What the client keeps outlives it, and the round waits for it, so the bits are the simulation's."""
    file, process = begin(running, tmp_path, "killed")
    wait_until_both_train(file, 2, process)
    os.kill(kept(running, "superlink")["process"], signal.SIGKILL)
    wait_until_both_train(file, 3, process)
    os.killpg(kept(running, "client-1")["process"], signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert kept(running, "superlink")["starts"] >= 2
    assert kept(running, "client-1")["starts"] >= 2
    here = recorded(running, "killed")
    rounds = pd.read_csv(here / "rounds.csv")
    assert rounds["round"].tolist() == list(range(1, 5))
    assert rounds.clients_ok.eq(2).all()
    there = simulated(small_experiment(name="killed", **stateful(None)), tmp_path / "s")
    assert sha256(here / "model.safetensors") == sha256(there / "model.safetensors")


def test_a_run_that_was_interrupted_says_so_and_goes_on_to_the_simulations_bits(running, tmp_path):
    file, process = begin(running, tmp_path, "stopped")
    assert process.stdout is not None
    beginning = next((line for line in process.stdout if "round 1/4" in line), "")
    assert beginning, "the first round was not told"
    wait_until_both_train(file, 2, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "to go on, run the same command again with --resume" in said
    here = recorded(running, "stopped")
    done = deploy(running.folder, "run", file, "--plain", "--set", "train.lr=0.5", "--resume")
    assert done.exit_code == 2
    assert "train.lr was" in done.stderr
    done = deploy(running.folder, "run", here, "--plain", "--resume")
    finished(done)
    assert "round 4/4" in done.stdout
    assert "round 1/4" not in done.stdout
    events = [json.loads(line) for line in (here / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["began", "interrupted", "resumed", "ended"]
    there = simulated(small_experiment(name="stopped", **stateful(None)), tmp_path / "s")
    assert sha256(here / "model.safetensors") == sha256(there / "model.safetensors")
    done = deploy(running.folder, "run", file, "--resume")
    finished(done)
    assert f"already done, in {here}" in done.stdout.replace("\n", "")
    assert str(here.relative_to(running.runs)) in deploy(running.folder, "status").stdout
