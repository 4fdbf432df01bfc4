"""The command line as a person uses it: exit codes, one message per error, files in the right places."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import broken_client, command, fedssl, refused, sha256, small_toml

MINIMAL = '[data]\nsource = "digits"\n'


@pytest.fixture
def file(tmp_path):
    return small_toml(tmp_path / "small.toml")


def test_run_records_where_it_is_told(file, tmp_path):
    result = fedssl("run", file, "--out", tmp_path / "out", "--set", "rounds=3")
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(tmp_path / "out" / "rounds.csv")) == 3
    assert "0 client failures" in result.output
    assert re.search(r"accuracy \d+\.\d %, EMA \d+\.\d %", result.output)


def test_run_without_out_makes_a_fresh_folder_each_time(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert fedssl("run", file).exit_code == 0
    models = sorted(Path("runs").glob("small/*/model.safetensors"))
    assert len(models) == 2
    assert sha256(models[0]) == sha256(models[1])


def test_several_runs_end_in_a_table_and_a_picture(file, tmp_path):
    other = small_toml(tmp_path / "other.toml", name="baseline", method={"kind": "supervised"})
    result = fedssl("run", other, file, "--seeds", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table.name.tolist() == ["baseline", "small"]
    assert table.seeds.tolist() == [2, 2]
    assert (tmp_path / "out" / "comparison.png").exists()
    for name in ("baseline-seed0", "baseline-seed1", "small-seed0", "small-seed1"):
        assert (tmp_path / "out" / name / "summary.json").exists()
    by_hand = [
        json.loads((tmp_path / "out" / f"small-seed{s}" / "summary.json").read_text())[
            "ema_accuracy"
        ]
        for s in (0, 1)
    ]
    assert table.ema_accuracy[1] == pytest.approx(sum(by_hand) / 2)


def test_a_client_that_raises_is_recorded_and_the_run_goes_on(tmp_path):
    broken, size = broken_client()
    file = small_toml(
        tmp_path / "e.toml",
        method={"kind": "tests.plugins.raising", "sizes": [size]},
        federation={"sample": 6},
    )
    result = fedssl("run", file, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    clients = pd.read_csv(tmp_path / "out" / "clients.csv")
    failed = clients[clients.status == "failed"]
    assert failed.client.tolist() == [broken, broken]
    assert (failed.reason == "RuntimeError: this client is broken on purpose").all()
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").open()]
    tracebacks = [e["reason"] for e in events if e["event"] == "client_failed"]
    assert len(tracebacks) == 2
    assert all("Traceback" in text and "raising.py" in text for text in tracebacks)
    last = result.output.strip().splitlines()[-2]
    assert last.endswith("2 client failures")


def test_all_clients_failing_stops_with_exit_1(tmp_path):
    file = small_toml(tmp_path / "e.toml", method={"kind": "tests.plugins.raising"})
    result = fedssl("run", file, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "all clients of round 1 failed" in result.output
    assert "  3 clients (" in result.output
    raising = Path(__file__).parents[1] / "plugins" / "raising.py"
    said = result.output.partition("error: ")[2].splitlines()
    assert len(said) == 3
    assert said[0] == "all clients of round 1 failed; the first failure was:"
    error = "in begin: RuntimeError: this client is broken on purpose"
    assert re.fullmatch(rf"{re.escape(str(raising))}, line \d+, {error}", said[1])
    out = tmp_path / "out"
    assert said[2] == f"the record so far is in {out}; to go on: fedssl run {out} --resume"
    assert "Traceback" in (out / "events.jsonl").read_text()
    assert len(pd.read_csv(tmp_path / "out" / "clients.csv")) == 3


TIRED = """from fedssl.strategies.base import Strategy
from fedssl.strategies.by_sums import SumStrategy


class Tired(SumStrategy):
    def after(self, server_round, arrays, aggregate):
        if server_round < 2:
            return aggregate
        raise RuntimeError("two rounds are too many")


class TiredSection(Strategy):
    def build(self, cohorts):
        return Tired(cohorts)
"""
"""A user's own strategy that raises at the server, in round 2."""


def test_an_error_of_a_users_code_at_the_server_is_one_line_and_its_traceback_is_recorded(
    tmp_path, monkeypatch
):
    (tmp_path / "tired.py").write_text(TIRED)
    monkeypatch.chdir(tmp_path)
    file = small_toml(tmp_path / "e.toml", method={"kind": "supervised"}, engine={"fuse": "off"})
    result = fedssl("run", file, "--set", "strategy.kind=tired.py", "--out", "out")
    assert result.exit_code == 1, result.output
    said = result.output.partition("error: ")[2].splitlines()
    assert said == [
        f"{tmp_path / 'tired.py'}, line 9, in after: RuntimeError: two rounds are too many",
        "the record so far is in out; to go on: fedssl run out --resume",
    ]
    assert "Traceback" in (tmp_path / "out" / "events.jsonl").read_text()
    again = fedssl("run", "out", "--resume")
    assert "goes on after round 1 of out" in again.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[data\n", ["not valid TOML", "line 1"]),
        (MINIMAL + "[metod]\n", ["metod: unknown key", "did you mean 'method'?"]),
        (MINIMAL + '[train]\nlr = "fast"\n', ["train.lr", "'fast'"]),
        (MINIMAL + "[federation]\nclients = 3\nsample = 5\n", ["sample = 5 is more than clients = 3"]),
        (MINIMAL + "[federation.partition]\nalpha = 0\n", ["federation.partition.alpha", "greater than 0"]),
        (MINIMAL + "[federation]\nclients = 2000\n", ["federation.clients: is 2000", "1437 training images"]),
        (MINIMAL + "[federation.labels]\nper_class = 1000\n", ["federation.labels.per_class: is 1000", "the smallest class, 8, has"]),
        (MINIMAL + '[method]\nkind = "mixmach"\n', ["there is no method 'mixmach'"]),
        (MINIMAL + '[strategy]\nkind = "avg"\n', ["there is no strategy 'avg'"]),
        (MINIMAL + '[strategy]\nkind = "flwr:Nothing"\n', ["Flower has no strategy 'Nothing'"]),
        (MINIMAL + '[model]\nkind = "torchvision:nothing"\n', ["torchvision has no classifier 'nothing'"]),
        ('[data]\nsource = "imagenet"\n', ["there is no data source 'imagenet'"]),
        (MINIMAL + "[[phases]]\nrounds = 0\n", ["phases.0.rounds: is 0"]),
        ('[data]\nsource = "fashion_mnist"\nroot = "/nowhere"\n', ["data.root", "download=true"]),
        (MINIMAL + "[engine]\ngpus_per_worker = 1.5\n", ["gpus_per_worker = 1.5; above 1 it must be a whole number"]),
        (MINIMAL + "[engine]\ncpus_per_client = 500\n", ["engine.cpus_per_client: is 500, but no machine here has more than", "at most"]),
        (MINIMAL + "[engine]\nkind = 'serial'\ncpus_per_client = 500\n", ["engine.cpus_per_client: is 500"]),
        (MINIMAL + "[engine]\nkind = 'serial'\ngpus_per_worker = 64\n", ["engine.gpus_per_worker: is 64, but there are"]),
    ],
)  # fmt: skip
def test_bad_input_is_exit_2_and_one_message(tmp_path, text, words):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    refused(fedssl("run", file, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_files_and_folders_that_are_not_there(file, tmp_path):
    refused(fedssl("run", tmp_path / "missing.toml"), "no such file")
    (tmp_path / "blocked").write_text("a file, not a folder")
    refused(fedssl("run", file, "--out", tmp_path / "blocked" / "x"), "--out", "cannot write")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    refused(fedssl("run", file, "--out", tmp_path / "full"), "is not empty")
    refused(fedssl("run", file, file), "two experiments are called 'small'")
    refused(fedssl("run", file, "--engine", "warp"), "engine.kind")
    refused(fedssl("list", "metods"), "did you mean 'methods'?")


def test_validate(file):
    result = fedssl("validate", file)
    assert result.exit_code == 0
    assert "valid" in result.output
    assert (
        "fixmatch on digits: 6 clients (dirichlet), 3 a round, 40 labels on 400 images"
        in result.output
    )
    refused(fedssl("validate", file, "--set", "federation.labels.per_class=999"), "smallest class")


@pytest.mark.parametrize(
    ("family", "members"),
    [
        ("methods", ["fixmatch", "mean_teacher", "supervised"]),
        ("strategies", ["fedavg", "fedavgm", "flwr:NAME"]),
        ("datasets", ["digits", "fashion_mnist"]),
        ("models", ["cnn", "torchvision:NAME"]),
        ("partitions", ["dirichlet", "iid"]),
        ("labels", ["at_clients"]),
        ("augmentations", ["randaugment", "weak"]),
    ],
)
def test_list(family, members):
    result = fedssl("list", family)
    assert result.exit_code == 0
    for member in members:
        assert member in result.output


def test_show(file, tmp_path):
    result = fedssl("show", file, "--out", tmp_path / "p.png")
    assert result.exit_code == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "skew 0." in result.output


def test_schema_and_doctor_and_version():
    schema = json.loads(fedssl("schema").output)
    assert set(schema["required"]) == {"data"}
    doctor = fedssl("doctor").output
    for word in ("cores", "GPUs", "flwr", "a run would use"):
        assert word in doctor
    assert fedssl("--version").output.startswith("fedssl ")
    assert "run" in fedssl("--help").output


def test_ctrl_c_is_exit_130_and_loses_no_finished_round(tmp_path):
    file = small_toml(tmp_path / "e.toml", rounds=100_000)
    out = tmp_path / "out"
    running = subprocess.Popen(
        command("run", file, "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in the background, their children would ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while (
        not (out / "rounds.csv").exists() or len((out / "rounds.csv").read_text().splitlines()) < 4
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    rounds = pd.read_csv(out / "rounds.csv")
    assert rounds["round"].tolist() == list(range(1, len(rounds) + 1))
    assert json.loads((out / "events.jsonl").read_text().splitlines()[-1])["event"] == "interrupted"


def test_a_method_beside_the_file_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "lab_of_mine").mkdir()
    source = Path("fedssl/methods/supervised.py").read_text()
    (tmp_path / "lab_of_mine" / "own.py").write_text(source)
    file = small_toml(tmp_path / "e.toml")
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", [*sys.path])
    result = fedssl("run", file, "--set", "method.kind=lab_of_mine.own", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert pd.read_csv(tmp_path / "out" / "rounds.csv").method.eq("lab_of_mine.own").all()
