"""A run at a glance: its state is told from its record alone, whatever ended it."""

import json
import math
import os
import re
from pathlib import Path

import filelock
import pandas as pd
import pytest

from fedssl.app.simulation import Engine
from fedssl.record.overview import State, accuracy_by_round, overview
from fedssl.record.rows import Observer
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import run_folders
from tests.helpers import small_experiment
from tests.test_imports import modules_after
from tests.views.comparison.records import record


class StopAfter(Observer):
    """Look at a run while it goes on, and raise an error after its second round."""

    def __init__(self, path, error):
        self.path, self.error = path, error
        self.seen = []

    def round_ended(self, end):
        self.seen.append(overview(self.path))
        if end.row.round == 2:
            raise self.error


@pytest.mark.parametrize(
    ("error", "state", "note"),
    [
        (KeyboardInterrupt(), State.interrupted, ""),
        (RuntimeError("a cable was pulled"), State.failed, "RuntimeError: a cable was pulled"),
    ],
)
def test_a_run_that_stopped_says_how(tmp_path, error, state, note):
    path = tmp_path / "run"
    watch = StopAfter(path, error)
    with Engine() as engine, pytest.raises(type(error)):
        engine.run(small_experiment(rounds=5), [RunDirectory(path), watch])
    assert [(seen.state, seen.rounds) for seen in watch.seen] == [
        (State.running, 1),
        (State.running, 2),
    ]
    found = overview(path)
    assert (found.state, found.note) == (state, note)
    assert (found.name, found.method, found.seed) == ("small", "fixmatch", 0)
    assert (found.rounds, found.num_rounds) == (2, 5)
    assert found.accuracy == accuracy_by_round(path)[-1][1]
    assert 0 < found.age < 300


def events(path: Path, *kinds: str) -> None:
    lines = [{"time": "2026-01-01T00:00:00+00:00", "event": kind, "reason": "x"} for kind in kinds]
    (path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        (["began"], State.killed),
        (["began", "client_failed"], State.killed),
        (["began", "failed"], State.failed),
        (["began", "failed", "incident"], State.failed),
        (["began", "interrupted", "incident"], State.interrupted),
        (["began", "interrupted", "resumed"], State.killed),
        (["began", "failed", "resumed"], State.killed),
        (["failed", "began", "incident"], State.killed),
        (["began", "ended"], State.killed),
        ([], State.killed),
    ],
)
def test_the_last_word_counts(tmp_path, kinds, state):
    path = record(tmp_path / "run", [0.5, 0.6], finished=False)
    events(path, *kinds)
    assert overview(path).state == state
    with filelock.FileLock(path / ".lock"):
        assert overview(path).state == State.running


def test_a_finished_run_is_told_by_its_summary(tmp_path):
    path = record(tmp_path / "run", [0.5, 0.75], ended="2026-01-01T00:00:00+00:00", seed=3)
    found = overview(path)
    assert (found.state, found.name, found.seed) == (State.finished, "small", 3)
    assert (found.rounds, found.num_rounds, found.accuracy) == (2, 2, 0.75)
    assert (found.seconds, found.began) == (2.0, 1767225600.0)


def test_rounds_of_phases_are_counted(tmp_path):
    phases = [{"rounds": 3, "method": {"kind": "supervised"}}, {"rounds": 4}]
    path = record(tmp_path / "run", [0.5], finished=False)
    (path / "experiment.toml").write_text(small_experiment(rounds=None, phases=phases).to_toml())
    (path / "rounds.csv").unlink()
    found = overview(path)
    assert (found.rounds, found.num_rounds) == (0, 7)
    assert found.method == "supervised"
    assert math.isnan(found.accuracy)


@pytest.mark.parametrize("name", ["summary.json", "events.jsonl", "tags.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[1", b"\xff\xfe", b"null", b'{"name": []}', b"[" * 99999]
)
def test_a_damaged_file_hides_no_run(tmp_path, name, content):
    path = record(tmp_path / "run", [0.5])
    (path / name).write_bytes(content)
    assert overview(path).state == State.finished


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "null", "1e999"])
def test_an_impossible_number_is_unknown(tmp_path, number):
    """JSON has no infinite numbers, so that one of them would spoil a list for programs."""
    path = record(tmp_path / "run", [0.5])
    text = (path / "summary.json").read_text()
    (path / "summary.json").write_text(
        re.sub(r'"(ema_accuracy|seconds)": [^,]*', rf'"\1": {number}', text)
    )
    found = overview(path)
    assert math.isnan(found.accuracy)
    assert math.isnan(found.seconds)
    assert (found.name, found.note) == ("small", "")
    (path / "rounds.csv").write_text("round,ema_accuracy\n1,inf\n2,0.5\n")
    assert accuracy_by_round(path) == [(2, 0.5)]


@pytest.mark.parametrize("name", ["experiment.toml", "rounds.csv", "events.jsonl"])
@pytest.mark.parametrize("content", [b"=", b"\xff\xfe\n", b"rounds = 'x'\n"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    path = record(tmp_path / "run", [0.5], finished=False)
    (path / name).write_bytes(content)
    found = overview(path)
    assert found.state == State.killed
    assert name == "rounds.csv" or f"{name} cannot be read" in found.note


def test_a_pipe_stops_nobody(tmp_path):
    path = record(tmp_path / "run", [0.5], finished=False)
    for name in ("rounds.csv", "events.jsonl"):
        (path / name).unlink()
        os.mkfifo(path / name)
    os.mkfifo(path / "tags.json")
    assert overview(path).rounds == 0


def test_runs_are_found_at_any_depth_and_not_within_each_other(tmp_path):
    paths = [record(tmp_path / name, [0.5]) for name in ("b", "a/1", "a/2/deep")]
    record(tmp_path / "b" / "within", [0.5])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert list(run_folders(tmp_path)) == sorted(paths)


def test_it_waits_for_nobody(tmp_path):
    record(tmp_path / "run", [0.5])
    code = f"from fedssl.record.overview import overview; from pathlib import Path; overview(Path({str(tmp_path / 'run')!r}))"
    assert modules_after(code) & {"torch", "numpy", "pydantic", "flwr", "pandas"} == set()


@pytest.mark.parametrize(
    ("ok", "failed", "inactive", "done"),
    [(0, 3, 0, 1), (1, 2, 0, 1), (2, 2, 0, 2), (0, 1, 2, 2), (0, 0, 0, 2), (3, 0, 0, 2)],
)
def test_a_round_in_which_too_many_clients_failed_is_not_done(tmp_path, ok, failed, inactive, done):
    """By default, half of the clients must succeed; a client with nothing to train on has answered."""
    path = record(tmp_path / "run", [0.5, 0.6], finished=False)
    rounds = pd.read_csv(path / "rounds.csv")
    rounds.loc[1, ["clients_ok", "clients_failed", "clients_inactive"]] = ok, failed, inactive
    rounds.to_csv(path / "rounds.csv", index=False)
    assert overview(path).rounds == done
