"""`fedssl run` with several runs: at a time where that is faster, with the results of one after the other."""

import signal
import subprocess
import time

import pytest

from fedssl.app import engine_choice
from tests.helpers import command, fedssl, refused, sha256, small_toml

AUTO = {"kind": "auto"}


@pytest.fixture
def files(tmp_path):
    methods = {"base": "supervised", "match": "fixmatch"}
    return [
        small_toml(
            tmp_path / f"{name}.toml", name=name, rounds=2, method={"kind": kind}, engine=AUTO
        )
        for name, kind in methods.items()
    ]


@pytest.fixture
def long_runs(monkeypatch):
    """Let every run seem so long that processes for it pay."""
    monkeypatch.setattr(engine_choice, "estimate_seconds", lambda *_: 100.0)


def models(out):
    return {path.parent.name: sha256(path) for path in out.glob("*/model.safetensors")}


@pytest.mark.usefixtures("long_runs")
def test_runs_side_by_side_have_the_results_of_runs_in_order(tmp_path, files):
    together = fedssl("run", *files, "--seeds", 2, "--out", tmp_path / "together")
    assert together.exit_code == 0
    assert "4 runs, 2 at a time (--jobs 1: one after the other); 0 done already" in together.output
    assert together.output.count("recorded in") == 4
    in_order = ("--jobs", 1, "--engine", "serial", "--out", tmp_path / "in_order")
    alone = fedssl("run", *files, "--seeds", 2, *in_order)
    assert "at a time" not in alone.output
    assert models(tmp_path / "together") == models(tmp_path / "in_order")
    assert len(models(tmp_path / "together")) == 4
    rows = [
        [line for line in result.output.splitlines() if line.strip().startswith(("base", "match"))]
        for result in (together, alone)
    ]
    assert rows[0][-2:] == rows[1][-2:]


def test_short_runs_and_runs_whose_engine_is_named_go_in_order(tmp_path, files, request):
    short = fedssl("run", *files, "--out", tmp_path / "short")
    assert "at a time" not in short.output
    request.getfixturevalue("long_runs")
    named = fedssl("run", *files, "--engine", "serial", "--out", tmp_path / "named")
    assert "at a time" not in named.output


@pytest.mark.usefixtures("long_runs")
def test_what_is_finished_stays_and_a_failure_ends_no_other_run(tmp_path, files):
    broken = small_toml(
        tmp_path / "c.toml",
        name="broken",
        rounds=2,
        method={"kind": "tests.plugins.raising"},
        server={"min_success": 1.0},
        engine=AUTO,
    )
    out = tmp_path / "out"
    first = fedssl("run", files[0], broken, files[1], "--out", out)
    assert first.exit_code == 1
    assert "1 of 3 runs failed" in first.output
    assert "broken seed 0: " in first.output
    before = models(out)
    assert set(before) == {"base-seed0", "match-seed0"}
    refused(fedssl("run", *files, "--out", out), "--out", "is not empty", "--resume")
    again = fedssl("run", *files, "--out", out, "--resume")
    assert again.exit_code == 0
    assert "0 runs, 2 at a time (--jobs 1: one after the other); 2 done already" in again.output
    assert models(out) == before


def test_the_user_may_ask_for_a_number_of_runs_and_go_on_after_ctrl_c(tmp_path):
    files = [
        small_toml(
            tmp_path / f"{name}.toml",
            name=name,
            rounds=80,
            server={"checkpoint_every": 1},
        )
        for name in ("a", "b")
    ]
    out = tmp_path / "out"
    arguments = ("run", *files, "--jobs", 2, "--out", out, "--plain")
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    tables = [out / f"{name}-seed0" / "rounds.csv" for name in ("a", "b")]
    deadline = time.monotonic() + 60
    while not all(t.exists() and t.read_bytes().count(b"\n") > 3 for t in tables):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = "".join(process.communicate(timeout=60))
    assert process.returncode == 130
    assert "run the same command again with --resume" in said
    resumed = fedssl(*arguments, "--resume")
    assert resumed.exit_code == 0
    assert "2 runs, 2 at a time (--jobs 1: one after the other); 0 done already" in resumed.output
    assert all(t.read_bytes().count(b"\n") == 81 for t in tables)
