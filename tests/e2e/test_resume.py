"""A run that is killed at any point and resumed gives the bits of a run that was never killed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedssl.app.runs import describe_start
from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.experiment.experiment import Experiment
from fedssl.record.resume import directory_to_resume
from fedssl.record.run_directory import RunDirectory
from fedssl.server.app import serve
from tests.helpers import (
    CHAIN,
    command,
    fedssl,
    in_a_process,
    refused,
    small_experiment,
    small_toml,
)
from tests.resuming import Copier, Stop, Stopper, bits, go_on, run

ROUNDS = 6
EVERY = {"checkpoint_every": 2}
SYSTEM = {"speed": {"kind": "lognormal", "median": 50.0, "sigma": 1.0}, "dropout": 0.2}

CASES: dict[str, dict[str, Any]] = {
    "memory at clients": {"method": {"kind": "temporal_ensembling", "unlabeled_ratio": 2}},
    "every hook": {"method": {"kind": "tests.plugins.stateful"}},
    "state at the server": {"method": {"kind": "freematch", "unlabeled_ratio": 2}},
    "fused": {"engine": {"fuse": 3}},
    "FedAdam": {"strategy": {"kind": "flwr:FedAdam", "options": {"eta": 0.01}}},
    "FedAvgM": {"strategy": {"kind": "flwr:FedAvgM", "options": {"server_momentum": 0.9}}},
    "SCAFFOLD, every hook": {"strategy": "scaffold", "method": {"kind": "tests.plugins.stateful"}},
    "FedProx": {"strategy": {"kind": "fedprox", "mu": 1.0}, "train": {"keep_momentum": True}},
    "FedDyn": {"strategy": {"kind": "feddyn", "alpha": 1.0}},
    "SemiFL": {
        "method": {"kind": "semifl", "threshold": 0.5},
        "strategy": {"kind": "fedavgm", "weight": "uniform", "momentum": 0.5},
        "train": {"keep_momentum": True, "clip_norm": 1.0},
        "federation": {"labels": {"kind": "at_server", "per_class": 4}},
        "server": {"train": {"local_steps": 20}},
    },
    "(FL)^2": {
        "method": {"kind": "fl2", "threshold": 0.2},
        "strategy": {"kind": "fedavgm", "weight": "number:uncertainty", "momentum": 0.5},
        "federation": {"labels": {"kind": "at_server", "per_class": 4}},
        "server": {"train": {"local_steps": 20}},
    },
    "CBAFed": {
        "method": {"kind": "cbafed", "base": 0.1, "warm_up": 0.2},
        "strategy": {"kind": "cbafed", "every": 2},
        "train": {"keep_momentum": True},
        "federation": {"labels": {"kind": "some_clients", "labeled_clients": 2}},
    },
    "ProxyFL": {
        "method": {"kind": "proxyfl", "threshold": 0.3, "unlabeled_ratio": 2},
        "strategy": {"kind": "proxyfl", "epochs": 3},
    },
    "CoMatch": {"method": {"kind": "comatch", "bank_size": 48, "unlabeled_ratio": 2}},
    "DivideMix": {
        "method": {"kind": "dividemix", "warm_up": 0.2, "history": 3},
        "federation": {"label_noise": {"kind": "symmetric", "rate": 0.4}},
    },
    "a queue and a key encoder at clients": {
        "method": {
            "kind": "moco", "queue_size": 40, "queue_scope": "client", "key_encoder_scope": "client"
        },
    },
    "Meta Pseudo Labels": {
        "method": {"kind": "meta_pseudo_labels", "baseline_decay": 0.9, "wait": 0.2, "labels": "sampled"},
    },
    "UPS": {"method": {"kind": "ups", "positive_threshold": 0.1, "positive_spread": 1.0}},
    "Noisy Student": {
        "rounds": None,
        "phases": [
            {"rounds": 2, "method": {"kind": "supervised"}},
            {
                "rounds": 4,
                "method": {"kind": "noisy_student", "threshold": 0.0, "per_class": 7},
                "model": {"kind": "cnn", "widths": [8], "hidden": 8, "dropout": 0.5},
            },
        ],
    },
    "FedEMA": {"method": {"kind": "fedema"}},
    "BYOL, a target at the server": {"method": {"kind": "byol", "target_scope": "server"}},
    "corrections in phases": {
        "rounds": None,
        "strategy": {"kind": "feddyn", "alpha": 1.0},
        "phases": [
            {"rounds": 2, "method": {"kind": "supervised"}},
            {"rounds": 1},
            {"rounds": 3, "strategy": "scaffold"},
        ],
    },
    "LARS with rates": {
        "train": {
            "optimizer": "lars", "keep_momentum": True, "rates": {"trunk.*": 0.5}, "decay_norms_and_biases": False,
            "schedule": {"kind": "cosine", "final": 0.01, "warm_up": 0.3},
        },
    },
    "a phase's state": {"method": {"kind": "tests.plugins.frozen"}},
    "helpers and sparse messages, virtual time": {
        "method": {"kind": "fedmatch", "threshold": 0.1, "unlabeled_ratio": 2},
        "train": {"lr": 0.005},
        "strategy": {"kind": "fedmatch", "delta_threshold": 1e-4, "helper_interval": 3},
        "system": {**SYSTEM, "deadline": 1000.0},
    },
    "sub-cohorts": {
        "method": {"kind": "mean_teacher", "teacher_scope": "client"},
        "train": {"keep_momentum": True},
        "strategy": {"kind": "rscfed", "distance_weight": 100.0},
    },
    "labels at the server, virtual time": {
        "federation": {"labels": {"kind": "at_server", "per_class": 4}},
        "server": {"method": {"kind": "mean_teacher", "teacher_scope": "client"}},
        "system": {**SYSTEM, "server_speed": 100.0, "deadline": 1000.0},
    },
    "phases": {
        "rounds": None,
        "phases": [
            {"rounds": 1, "method": {"kind": "supervised"}},
            {"rounds": 2, "strategy": {"kind": "flwr:FedAdam", "options": {"eta": 0.01}}},
            {"rounds": 3, "method": {"kind": "tests.plugins.stateful"}, "strategy": "fedavg"},
        ],
    },
    "phases that change the network": {**CHAIN, "strategy": {"kind": "fedadam"}},
}  # fmt: skip

ALL_ROUNDS = range(1, ROUNDS + 1)

ONCE_PER_CHECKPOINT = (3, 5)
"""Rounds after which a killed run goes on from the checkpoint of round 2, and from that of round 4."""

EVERY_ROUND = {"every hook", "phases"}
"""Cases that are killed after every round. What the other rounds add (the checkpoint of the first round, nothing to
cut off from the tables, nothing left to train) is the same code for every method and strategy."""


def experiment_of(case: str) -> Experiment:
    overrides = CASES[case]
    server = {**EVERY, **overrides.get("server", {})}
    return small_experiment(**{"rounds": ROUNDS, **overrides, "server": server})


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_killed_after_any_round_it_goes_on_to_the_same_bits(case, tmp_path):
    experiment = experiment_of(case)
    run(experiment, tmp_path / "whole", Copier(tmp_path / "whole", tmp_path / "killed"))
    whole = bits(tmp_path / "whole")
    for after in ALL_ROUNDS if case in EVERY_ROUND else ONCE_PER_CHECKPOINT:
        path = tmp_path / "killed" / str(after)
        found = go_on(experiment, path)
        last = min(after, ROUNDS - 1) // 2 * 2 or 1  # the first round has a checkpoint of its own
        assert (found.snapshot.round if found.snapshot else 0) == last
        assert bits(path) == whole, after
        assert {p.name for p in path.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "case",
    [
        "every hook",
        "labels at the server, virtual time",
        "phases",
        "phases that change the network",
    ],
)
def test_stopped_by_an_error_it_goes_on_with_the_next_round(case, tmp_path):
    experiment = experiment_of(case)
    run(experiment, tmp_path / "whole")
    for after in (1, 3, ROUNDS):
        path = tmp_path / str(after)
        with pytest.raises(Stop):
            run(experiment, path, Stopper(after))
        found = go_on(experiment, path)
        assert found.snapshot is not None
        assert found.snapshot.round == after
        assert bits(path) == bits(tmp_path / "whole"), after


def test_stopped_time_and_again(tmp_path):
    experiment = experiment_of("every hook")
    run(experiment, tmp_path / "whole")
    with pytest.raises(Stop):
        run(experiment, tmp_path / "run", Stopper(1))
    for after in range(2, ROUNDS + 1):
        with pytest.raises(Stop):
            go_on(experiment, tmp_path / "run", Stopper(after), memory=0)
        folders = {p.name for p in (tmp_path / "run" / "checkpoint").iterdir()}
        kept = {f"round-{n:06d}" for n in range(max(1, after - 1), after + 1)}
        assert folders == {*kept, "clients"}
    go_on(experiment, tmp_path / "run", memory=0)
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").open()]
    kinds = [event["event"] for event in events]
    assert kinds == ["began", *["failed", "resumed"] * ROUNDS, "ended"]
    assert [e["after_round"] for e in events if e["event"] == "resumed"] == list(range(1, 7))


def test_interrupted_within_a_round_the_last_finished_one_is_kept(tmp_path):
    """The error comes from the grid, in the middle of round 4, with half its clients' state staged."""

    class Interrupted(SerialGrid):
        sent = 0

        def reduce(self, messages, sums, **options):
            self.sent += 1
            for number, answer in enumerate(super().reduce(messages, sums, **options)):
                if self.sent == 4 and number == 1:
                    raise KeyboardInterrupt
                yield answer

    experiment = experiment_of("memory at clients")
    run(experiment, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        serve(experiment, Interrupted(Apps(app), 6), [RunDirectory(tmp_path / "run")])
    found = go_on(experiment, tmp_path / "run")
    assert found.snapshot is not None
    assert found.snapshot.round == 3
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def keep_three_rounds(path):
    """Cut a table off after its heads and three rows."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))


SPOILT = {
    "a bit of the weights": ("round-000004/model.safetensors", flip),
    "the end of the average": ("round-000004/ema.safetensors", truncate),
    "the manifest": ("round-000004/manifest.json", flip),
    "the manifest's end": ("round-000004/manifest.json", truncate),
    "what clients keep": ("clients/round-000004.pack", flip),
    "no clients": ("clients/round-000004.pack", Path.unlink),
    "no index": ("round-000004/clients.safetensors", Path.unlink),
    "nothing": ("round-000004", lambda path: [p.unlink() for p in path.iterdir()]),
    "a shorter record": ("../rounds.csv", keep_three_rounds),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """An experiment, the bits of its whole run, and its folder as it was after round 5."""
    folder = tmp_path_factory.mktemp("killed")
    experiment = experiment_of("every hook")
    run(experiment, folder / "whole", Copier(folder / "whole", folder))
    return experiment, bits(folder / "whole"), folder / "5"


@pytest.mark.parametrize("what", SPOILT)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(what, killed, tmp_path):
    experiment, whole, path = killed
    shutil.copytree(path, tmp_path / "run")
    name, spoil = SPOILT[what]
    spoil(tmp_path / "run" / "checkpoint" / name)
    found = go_on(experiment, tmp_path / "run")
    assert found.snapshot is not None
    assert found.snapshot.round == 2
    (said,) = found.damaged
    assert said.startswith("the checkpoint of round 4 is damaged: ")
    assert bits(tmp_path / "run") == whole


def test_where_all_are_damaged_it_begins_anew(killed, tmp_path):
    experiment, whole, path = killed
    shutil.copytree(path, tmp_path / "run")
    for model in (tmp_path / "run").rglob("round-*/model.safetensors"):
        flip(model)
    found = go_on(experiment, tmp_path / "run")
    assert (found.snapshot, len(found.damaged)) == (None, 2)
    assert bits(tmp_path / "run") == whole


def test_a_run_that_was_killed_before_any_checkpoint_keeps_that_it_began(killed, tmp_path):
    """The events of the rounds that are run again are written anew."""
    experiment, whole, path = killed
    shutil.copytree(path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    first = json.loads((path / "events.jsonl").read_text().splitlines()[0])
    go_on(experiment, tmp_path / "run")
    assert bits(tmp_path / "run") == whole
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").open()]
    assert events[0] == first
    assert [event["event"] for event in events] == ["began", "resumed", "ended"]
    assert events[1]["after_round"] == 0


def test_who_goes_on_with_a_killed_run_is_told_which_rounds_are_run_again(killed, tmp_path):
    experiment, _, path = killed
    shutil.copytree(path, tmp_path / "run")

    def start():
        with contextlib.closing(RunDirectory(tmp_path / "run", resume=True)) as directory:
            return describe_start(directory, experiment, directory.load())

    why = "run again (server.checkpoint_every = 2)"
    folder = tmp_path / "run"
    assert start() == f"goes on after round 4 of {folder}; round 5 is {why}"
    shutil.rmtree(folder / "checkpoint" / "round-000004")
    assert start() == f"goes on after round 2 of {folder}; rounds 3 to 5 are {why}"
    shutil.rmtree(folder / "checkpoint")
    none = f"there is no checkpoint in {folder}; the run begins with round 1"
    assert start() == f"{none}; rounds 1 to 5 are {why}"
    (folder / "rounds.csv").unlink()
    assert start() == none


def test_torn_lines_go(killed, tmp_path):
    experiment, whole, path = killed
    shutil.copytree(path, tmp_path / "run")
    for name in ("rounds.csv", "clients.csv", "events.jsonl"):
        with (tmp_path / "run" / name).open("a") as file:
            file.write("6,0,torn")
    go_on(experiment, tmp_path / "run")
    assert bits(tmp_path / "run") == whole
    for line in (tmp_path / "run" / "events.jsonl").open():
        json.loads(line)


@pytest.mark.timeout(600)
def test_they_go_on_on_another_engine(tmp_path):
    """Two stopped runs, which share one command's workers."""
    files = []
    for name, case in (("hooks", "every hook"), ("phased", "phases")):
        experiment = Experiment.from_dict(experiment_of(case).to_dict() | {"name": name})
        run(experiment, tmp_path / name)
        with pytest.raises(Stop):
            run(experiment, tmp_path / "out" / f"{name}-seed0", Stopper(3))
        files.append(tmp_path / f"{name}.toml")
        files[-1].write_text(experiment.to_toml())
    ray = ("--engine", "ray", "--workers", 2, "--set", "engine.state_memory=0")
    done = in_a_process("run", *files, "--out", tmp_path / "out", "--resume", *ray)
    assert done.stdout.count("goes on after round 3") == 2
    for name in ("hooks", "phased"):
        assert bits(tmp_path / "out" / f"{name}-seed0") == bits(tmp_path / name)


def begin(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("run", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests themselves run in the background, their children would ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_rounds(process: subprocess.Popen[str], out: Path, rounds: int) -> None:
    deadline = time.monotonic() + 200
    while (
        not (out / "rounds.csv").exists() or len((out / "rounds.csv").open().readlines()) <= rounds
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """An experiment file whose run takes a while, and the bits of it."""
    folder = tmp_path_factory.mktemp("long")
    overrides = {**CASES["memory at clients"], "train": {"local_steps": 10}, "server": EVERY}
    file = small_toml(folder / "e.toml", rounds=40, **overrides)
    run(Experiment.load(file), folder / "whole")
    return file, bits(folder / "whole")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_is_stopped_and_another_goes_on(how, long_run, tmp_path):
    file, whole = long_run
    out = tmp_path / "run"
    process = begin(file, "--out", out, "--plain")
    wait_for_rounds(process, out, 5)
    refused(fedssl("run", file, "--out", out, "--resume"), "in use by another process")
    if how == signal.SIGKILL:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    _, errors = process.communicate(timeout=100)
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "interrupted" in errors
        assert "--resume" in errors
        assert "Traceback" not in errors
    before = len((out / "rounds.csv").open().readlines()) - 1
    assert 5 <= before < 40
    done = fedssl("run", file, "--out", out, "--resume", "--plain")
    assert done.exit_code == 0, done.output
    went_on = int(done.output.partition("goes on after round ")[2].split()[0])
    assert went_on == before if how != signal.SIGKILL else before - 2 <= went_on <= before
    assert bits(out) == whole


def test_a_changed_experiment_is_refused_with_the_difference(killed, tmp_path):
    experiment, _, path = killed
    shutil.copytree(path, tmp_path / "run")
    file = tmp_path / "e.toml"
    file.write_text(experiment.to_toml())
    changed = ("--set", "train.lr=0.5", "--set", "rounds=7")
    result = fedssl("run", file, "--resume", "--out", tmp_path / "run", *changed)
    lr = experiment.train.lr
    refused(
        result, f"train.lr was {lr} and is 0.5", "rounds was 6 and is 7", "run without --resume"
    )
    assert len(pd.read_csv(tmp_path / "run" / "rounds.csv")) == 5
    edited = tmp_path / "run" / "experiment.toml"
    edited.write_text(edited.read_text().replace("rounds = 6", "rounds = 7"))
    result = fedssl("run", file, "--resume", "--out", tmp_path / "run", "--set", "rounds=7")
    refused(result, "experiment.toml was changed after the run began")


def test_data_that_was_moved_is_gone_on_with(tmp_path):
    settings = {"data": {"source": "mnist", "root": "/here"}}
    (tmp_path / "experiment.toml").write_text(small_experiment(**settings).to_toml())
    settings["data"] |= {"root": "/there", "download": True}
    directory_to_resume(small_experiment(**settings), tmp_path).close()
    settings["data"] |= {"train_size": 10}
    with pytest.raises(InputError, match=r"data.train_size was 400 and is 10"):
        directory_to_resume(small_experiment(**settings), tmp_path)


def test_who_is_fused_is_part_of_the_settings(tmp_path):
    """Six small clients a round are fused by the rule, so a run that goes on must fuse them too."""
    experiment = small_experiment(rounds=4, federation={"sample": 6}, engine={"fuse": "auto"})
    run(experiment, tmp_path / "whole")
    with pytest.raises(Stop):
        run(experiment, tmp_path / "run", Stopper(2))
    file = tmp_path / "e.toml"
    file.write_text(experiment.to_toml())
    again = ("run", file, "--out", tmp_path / "run", "--resume")
    refused(fedssl(*again, "--set", "engine.fuse=off"), 'engine.fuse was "auto" and is "off"')
    refused(fedssl(*again, "--engine", "flower"), 'engine.fuse was "auto" and is "off"')
    go_on(experiment, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    alone = experiment.model_copy(update={"engine": small_experiment().engine})
    run(alone, tmp_path / "one by one")
    assert bits(tmp_path / "one by one") != bits(tmp_path / "whole")


def test_changed_data_is_refused(killed, tmp_path):
    experiment, _, path = killed
    shutil.copytree(path, tmp_path / "run")
    partition = tmp_path / "run" / "partition.csv"
    table = pd.read_csv(partition)
    table.assign(client=table.client[::-1].to_numpy()).to_csv(partition, index=False)
    file = tmp_path / "e.toml"
    file.write_text(experiment.to_toml())
    result = fedssl("run", file, "--resume", "--out", tmp_path / "run", "--plain")
    refused(result, "which clients hold them, are no longer those of")
    assert len(pd.read_csv(tmp_path / "run" / "rounds.csv")) == 5


def test_without_out_it_finds_the_newest_run_with_these_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = small_toml(tmp_path / "e.toml")
    first = fedssl("run", file, "--resume")
    assert first.exit_code == 0, first.output
    assert "begins anew: nothing in " in first.output
    assert fedssl("run", file, "--set", "seed=10").exit_code == 0
    again = fedssl("run", file, "--resume", "--seeds", 2)
    assert again.exit_code == 0, again.output
    assert "small seed 0: already done" in again.output
    assert "small seed 1: begins anew: nothing in " in again.output
    assert "digits, test images" in again.output  # the table has both
    assert len(list(Path("runs/small").glob("*"))) == 3
    refused(fedssl("run", file, "--resume", "--set", "train.lr=0.5"), "train.lr was", "and is 0.5")
    never = Path("runs/small/20990101-000000-seed0")
    never.mkdir()
    assert directory_to_resume(small_experiment(), None).path != never
    other = directory_to_resume(small_experiment(train={"lr": 0.5}), None)
    assert (other.path, other.continues) == (never, False)


def test_several_runs_of_which_some_are_done(tmp_path):
    file = small_toml(tmp_path / "e.toml", rounds=4)
    whole = fedssl("run", file, "--seeds", 3, "--out", tmp_path / "out")
    assert whole.exit_code == 0, whole.output
    before = {seed: bits(tmp_path / "out" / f"small-seed{seed}") for seed in range(3)}
    shutil.rmtree(tmp_path / "out" / "small-seed2")
    shutil.rmtree(tmp_path / "out" / "small-seed1")
    with pytest.raises(Stop):
        run(small_experiment(rounds=4, seed=1), tmp_path / "out" / "small-seed1", Stopper(2))
    (tmp_path / "out" / "comparison.csv").rename(tmp_path / "comparison.csv")
    again = fedssl("run", file, "--seeds", 3, "--out", tmp_path / "out", "--resume")
    assert again.exit_code == 0, again.output
    for seed in range(3):
        assert bits(tmp_path / "out" / f"small-seed{seed}") == before[seed]
    tables = [
        pd.read_csv(p / "comparison.csv").drop(columns=["seconds", "seconds_to_reach"])
        for p in (tmp_path, tmp_path / "out")
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.timeout(600)
def test_under_flowers_runtime_what_clients_keep_is_lost_and_nothing_else(tmp_path):
    kept = small_toml(tmp_path / "kept.toml", method={"kind": "tests.plugins.stateful"})
    for engine in ("flower", "serial"):
        with pytest.raises(Stop):
            run(small_experiment(method="tests.plugins.stateful"), tmp_path / engine, Stopper(1))
    result = subprocess.run(
        command("run", kept, "--out", tmp_path / "flower", "--resume", "--engine", "flower"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "the slot 'memory' of [method]" in result.stderr
    assert "engine.kind = 'ray' or 'serial'" in result.stderr
    free = small_experiment(rounds=4)
    run(free, tmp_path / "whole")
    file = small_toml(tmp_path / "free.toml", rounds=4)
    with pytest.raises(Stop):
        run(free, tmp_path / "run", Stopper(2))
    in_a_process("run", file, "--out", tmp_path / "run", "--resume", "--engine", "flower")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_a_run_is_resumed_by_its_folder_to_the_same_bits(killed, tmp_path):
    _, whole, path = killed
    shutil.copytree(path, tmp_path / "run")
    result = fedssl("run", tmp_path / "run", "--resume", "--plain")
    assert result.exit_code == 0, result.output
    assert bits(tmp_path / "run") == whole
    (tmp_path / "x").mkdir()
    again = fedssl("run", tmp_path / "run", tmp_path / "x" / ".." / "run", "--resume", "--plain")
    assert again.exit_code == 0, again.output
    assert again.output.count("already done") == 1
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # a second run of one name and seed
    both = fedssl("run", tmp_path / "run", tmp_path / "copy", "--resume", "--plain")
    assert both.output.count("already done") == 2


def test_the_folder_of_a_run_is_no_experiment_file(killed, tmp_path):
    _, _, path = killed
    before = sorted(path.rglob("*"))
    refused(fedssl("run", path), "is the folder of a run", "--resume")
    refused(fedssl("run", tmp_path, "--resume"), "is a folder that holds no run")
    refused(fedssl("run", path.parent, "--resume"), "name one of its runs, such as")
    file = small_toml(tmp_path / "e.toml")
    for more in ((file,), ("--seeds", 2), ("--out", tmp_path / "o")):
        refused(fedssl("run", path, *more, "--resume"), "without --out and --seeds")
    assert sorted(path.rglob("*")) == before
