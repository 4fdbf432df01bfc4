"""A sweep as a person uses it: killed and resumed, with failing runs, interrupted, listed, compared."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import filelock
import pandas as pd
import pytest

from tests.e2e.test_interrupts import HIDE, SHOW, read_until
from tests.helpers import command, fedssl, refused, sha256, small_toml
from tests.resuming import bits

METHODS = ("supervised", "fixmatch")
SEEDS = 3
ROUNDS = 8


@pytest.fixture
def file(tmp_path):
    return small_toml(tmp_path / "small.toml", rounds=1)


def small_file(folder: Path, rounds: int) -> Path:
    """Write an experiment of which every round can be gone on from."""
    return small_toml(folder / "small.toml", rounds=rounds, server={"checkpoint_every": 1})


def finished(out: Path) -> set[Path]:
    return {summary.parent for summary in out.glob("*/*/seed*/summary.json")}


def recorded_rounds(run: Path) -> int:
    table = run / "rounds.csv"
    return max(0, table.read_bytes().count(b"\n") - 1) if table.exists() else 0


def files_of(run: Path) -> dict[str, tuple[int, str]]:
    return {p.name: (p.stat().st_mtime_ns, sha256(p)) for p in run.glob("[!.]*") if p.is_file()}


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.timeout(300)
def test_a_sweep_that_was_killed_does_only_what_is_left_and_ends_in_the_comparison(tmp_path):
    file, out = small_file(tmp_path, ROUNDS), tmp_path / "sweep"
    arguments = ("sweep", file, "--set", f"method.kind={','.join(METHODS)}", "--seeds", SEEDS)
    arguments += ("--out", out, "--jobs", 2, "--plain")

    def is_amid() -> bool:
        begun = [run for run in out.glob("*/*/seed*") if 2 <= recorded_rounds(run) <= ROUNDS // 2]
        return len(finished(out)) >= 2 and len(begun) > 0

    killed = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(is_amid, killed)
    killed.kill()
    killed.communicate()
    before = {run: files_of(run) for run in finished(out)}
    again = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stdout + again.stderr

    runs = {f"{kind} {seed}": out / f"small/method.kind={kind}/seed{seed}" for kind in METHODS for seed in range(SEEDS)}  # fmt: skip
    assert finished(out) == set(runs.values())
    assert {run: files_of(run) for run in before} == before
    ran = re.findall(r"\[\d+/6\] small \((\w+)\) seed (\d)", again.stdout)
    # One that was begun can have come to its end while the first sweep's processes were ending.
    assert {runs[" ".join(each)] for each in ran} | before.keys() == set(runs.values())
    assert not {runs[" ".join(each)] for each in ran} & before.keys()
    events = [(run / "events.jsonl").read_text() for run in runs.values()]
    assert any('"event": "resumed"' in text for text in events)

    for kind in METHODS:
        for seed in range(SEEDS):
            alone = tmp_path / f"{kind}{seed}"
            settings = ("--set", f"method.kind={kind}", "--set", f"seed={seed}", "--out", alone)
            assert fedssl("run", file, *settings).exit_code == 0
            assert bits(alone) == bits(runs[f"{kind} {seed}"])
    check_comparison(out, runs)
    check_books(out, set(runs.values()))


T_OF_TWO = 4.302652729749463
"""Student's t for 95 % and two degrees of freedom: 0.95 sqrt(2 / (1 - 0.95^2))."""


def check_comparison(out: Path, runs: dict[str, Path]) -> None:
    """Compare the table with one that is computed here, from the rounds of every run alone."""
    table = pd.read_csv(out / "comparison.csv").set_index("label")
    assert table.index.tolist() == list(METHODS)
    accuracy = {
        (kind, seed): pd.read_csv(runs[f"{kind} {seed}"] / "rounds.csv").ema_accuracy[-10:].mean()
        for kind in METHODS
        for seed in range(SEEDS)
    }
    for kind in METHODS:
        line = table.loc[kind]
        values = [accuracy[kind, seed] for seed in range(SEEDS)]
        gains = [accuracy[kind, seed] - accuracy[METHODS[0], seed] for seed in range(SEEDS)]
        mean = sum(values) / SEEDS
        assert line.seeds == SEEDS
        assert line.ema_accuracy == pytest.approx(mean)
        deviation = (sum((value - mean) ** 2 for value in values) / (SEEDS - 1)) ** 0.5
        assert line.ema_accuracy_std == pytest.approx(deviation)
        gain = sum(gains) / SEEDS
        assert line.gain == pytest.approx(gain)
        spread = (sum((value - gain) ** 2 for value in gains) / (SEEDS - 1)) ** 0.5
        # Each seed draws its held-out images from one pool, so the seeds share images (Nadeau & Bengio, 2003).
        facts = json.loads((runs[f"{kind} 0"] / "data.json").read_text())
        overlap = facts["num_held_out"] / facts["num_train"]
        half = T_OF_TWO * spread * (1 / SEEDS + overlap) ** 0.5
        assert line.gain_ci95_low == pytest.approx(gain - half, abs=1e-9)
        assert line.gain_ci95_high == pytest.approx(gain + half, abs=1e-9)
        sent = [pd.read_csv(runs[f"{kind} {seed}"] / "rounds.csv") for seed in range(SEEDS)]
        bytes_sent = sum((rounds.bytes_up + rounds.bytes_down).sum() for rounds in sent)
        assert line.megabytes == pytest.approx(bytes_sent / SEEDS / 1e6)


def check_books(out: Path, runs: set[Path]) -> None:
    books = json.loads((out / "sweep.json").read_text())
    assert books["settings"] == {"method.kind": list(METHODS)}
    assert {out / run["folder"] for run in books["runs"]} == runs
    assert not any("failed" in run for run in books["runs"])


def test_failures_are_kept_apart_and_tried_again(file, tmp_path):
    """One run raises, one takes its process along; neither ends the others."""
    out = tmp_path / "out"
    kinds = "tests.plugins.deadly,fixmatch,tests.plugins.raising"
    arguments = ("sweep", file, "--set", f"method.kind={kinds}", "--out", out, "--jobs", 2)
    result = fedssl(*arguments)
    assert result.exit_code == 1, result.output
    assert "2 of 3 runs failed" in result.output
    assert finished(out) == {out / "small/method.kind=fixmatch/seed0"}
    reasons = {
        run["settings"]["method.kind"]: run.get("failed")
        for run in json.loads((out / "sweep.json").read_text())["runs"]
    }
    assert reasons["fixmatch"] is None
    deadly = "its process was killed by SIGKILL; perhaps memory ran out"
    raising = "RuntimeError: this client is broken on purpose"
    assert reasons["tests.plugins.deadly"] == deadly
    assert reasons["tests.plugins.raising"].endswith(raising)
    for name, why in {"deadly": deadly, "raising": rf"/.*raising\.py, line .*: {raising}"}.items():
        folder = f"small/method.kind=tests.plugins.{name}/seed0"
        assert re.search(rf"\[\d/3\] {re.escape(folder)} failed: {why}", result.output)
        listed = result.output.partition("\nfailed\n")[2]
        assert re.search(rf" {re.escape(str(out / folder))}: {why}\n", listed)
    before = {run: files_of(run) for run in finished(out)}
    again = fedssl(*arguments)
    assert again.exit_code == 1, again.output
    assert "2 runs, 2 at a time; 1 done already" in again.output
    assert {run: files_of(run) for run in before} == before


def test_more_values_and_seeds_are_more_runs_and_other_settings_are_refused(file, tmp_path):
    out = tmp_path / "out"

    def sweep(*more):
        return fedssl("sweep", file, "--out", out, "--jobs", 1, *more)

    listed = sweep("--set", "train.lr=0.01", "--dry-run")
    assert listed.exit_code == 0, listed.output
    assert "1 run: 0 finished, 0 begun, 1 new; 1 at a time" in listed.output
    assert not out.exists()
    assert sweep("--set", "train.lr=0.01").exit_code == 0
    listed = sweep("--set", "train.lr=0.01,0.02", "--seeds", 2, "--dry-run")
    assert re.findall(r"(\w+) .*train.lr=([\d.]+)/seed(\d)", listed.output) == [
        ("finished", "0.01", "0"), ("new", "0.01", "1"), ("new", "0.02", "0"), ("new", "0.02", "1"),
    ]  # fmt: skip
    small_toml(file, rounds=2)
    refused(sweep("--set", "train.lr=0.01,0.02"), "has other settings: rounds was 1 and is 2")
    assert len(finished(out)) == 1
    result = sweep("--set", "train.lr=0.01,0.02", "--set", "rounds=1", "--set", "engine.workers=1")
    assert result.exit_code == 0, result.output
    assert len(finished(out)) == 3  # a setting for all is part of the name; where it runs is not


def test_a_point_that_cannot_be_is_found_before_anything_runs(file, tmp_path):
    out = ("--out", tmp_path / "out")
    bad = fedssl("sweep", file, *out, "--set", "method.threshold=0.9,2")
    refused(bad, "with method.threshold=2: ", "method.threshold: is 2")
    bad = fedssl("sweep", file, *out, "--set", "federation.labels.per_class=4,999", "--seeds", 2)
    refused(bad, "small (per_class 999) seed 0: federation.labels.per_class: ", "smallest class")
    refused(fedssl("sweep", file, *out, "--set", "rounds=1,2", "--set", "rounds=3"), "set twice")
    refused(fedssl("sweep", file, file, *out), "two runs are called small/seed0")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_had_is_said_before_anything_runs(file, tmp_path):
    refused(fedssl("sweep", file, "--out", file / "below"), "--out: cannot write to")
    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / ".lock"):  # as a sweep that goes holds it
        refused(fedssl("sweep", file, "--out", tmp_path / "out"), "--out: another sweep uses")
    refused(fedssl("sweep", file, "--out", tmp_path), "is not empty and holds no sweep")


@pytest.mark.timeout(300)
def test_ctrl_c_writes_checkpoints_and_leaves_the_terminal_as_it_was(tmp_path):
    file, out = small_file(tmp_path, 100_000), tmp_path / "out"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("sweep", file, "--seeds", 3, "--out", out, "--jobs", 2),
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(theirs)
    text = read_until(ours, b"seed 1")
    wait_until(lambda: all(recorded_rounds(out / f"small/seed{s}") > 2 for s in (0, 1)), process)
    text = read_until(ours, b"/100000", text)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    text = read_until(ours, b"never said", text)
    os.close(ours)
    assert process.wait(60) == 130
    assert b"0 of 3 runs done, 0 failed, 3 left" in text
    assert b"run the same command again" in text
    assert b"Traceback" not in text
    assert text.rindex(SHOW) > text.rindex(HIDE)
    for seed in (0, 1):
        run = out / f"small/seed{seed}"
        assert list((run / "checkpoint").glob("round-*"))
        last = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
        assert (last["event"], last["reason"]) == ("interrupted", "Ctrl-C or another signal")
    assert not (out / "small/seed2").exists()
