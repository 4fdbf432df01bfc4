"""Reading a run: while it is running, after it was killed, and when its phases differ."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from fedssl.app.deploy.follow import Watch, _new_rounds
from fedssl.record.lines import read_rounds, read_rows
from fedssl.record.rows import ClassRow, ClientRow
from fedssl.views import run as reading
from fedssl.views.closer_look import look_closely
from fedssl.views.run import Run
from tests.helpers import federation_of, fedssl, refused, small_experiment
from tests.resuming import Stop, Stopper
from tests.resuming import run as record

PHASES = [
    {"rounds": 2, "method": {"kind": "remixmatch", "unlabeled_ratio": 2}},
    {"rounds": 1},
]
"""The first method's network has a head for rotations that the second's has not."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Return the folder of a run that was stopped after round 2, at the end of its first phase; with two checkpoints."""
    experiment = small_experiment(rounds=None, phases=PHASES, server={"checkpoint_every": 1})
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stop):
        record(experiment, folder, Stopper(2))
    return folder


@pytest.mark.parametrize(("round", "phase"), [(1, 0), (2, 0), (3, 1), (4, 2), (5, 2)])
def test_a_round_belongs_to_a_phase(round, phase):
    phases = [{"rounds": 2}, {"rounds": 1}, {"rounds": 1}]
    assert small_experiment(rounds=None, phases=phases).phase_of(round) == phase


def test_the_model_of_a_run_that_stopped_is_its_phases(stopped, tmp_path):
    run = Run(stopped)
    assert run.weights()[0] == 2
    weights = run.model(average=False).state_dict()
    held = load_file(stopped / "checkpoint" / "round-000002" / "model.safetensors")
    shared = {name.removeprefix("classifier."): array for name, array in held.items()}
    for name, tensor in weights.items():
        assert np.array_equal(shared[name], tensor.numpy())
    out = tmp_path / "m.safetensors"
    result = fedssl("export", stopped, "--format", "safetensors", "--out", out)
    assert result.exit_code == 0, result.output
    with safe_open(out, "np") as file:
        said = file.metadata()
    assert (said["method"], said["rounds"]) == ("remixmatch", "2 of 3")
    looked = look_closely(run.experiment, federation_of(run.experiment), {"m": run.arrays()}, 2)
    assert np.sum(looked["models"]["m"]["confusion"]) > 0


def test_weights_are_of_one_checkpoint_whatever_is_removed_meanwhile(
    stopped, tmp_path, monkeypatch
):
    """The newest checkpoint goes after the first of its files was read."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    before = folder / "checkpoint" / "round-000001"
    loaded = []

    def load_and_remove(path):
        arrays = load_file(path)
        if not loaded:
            shutil.rmtree(folder / "checkpoint" / "round-000002")
        loaded.append(path)
        return arrays

    monkeypatch.setattr(reading, "load_file", load_and_remove)
    round, models = Run(folder).weights()
    assert (round, set(models)) == (1, {"ema", "model"})
    for name, arrays in models.items():
        wanted = load_file(before / f"{name}.safetensors")
        assert all(np.array_equal(wanted[key], array) for key, array in arrays.items())


def test_every_beginning_of_a_table_is_read_up_to_its_last_whole_line(stopped, tmp_path):
    for name, kind in (("rounds.csv", None), ("clients.csv", ClientRow), ("classes.csv", ClassRow)):
        content, torn = (stopped / name).read_bytes(), tmp_path / name
        for length in range(len(content) - 200, len(content) + 1):
            torn.write_bytes(content[:length])
            rows = read_rounds(torn) if kind is None else read_rows(torn, kind)
            assert len(rows) == content[:length].count(b"\n") - 1


def test_a_run_whose_last_lines_are_torn_is_read_reported_and_followed(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    for name in ("rounds.csv", "clients.csv", "classes.csv", "events.jsonl"):
        with (folder / name).open("a") as file:
            file.write('3,0,"to')
    run = Run(folder)
    assert len(run.rounds) == 2
    assert run.clients.equals(Run(stopped).clients)
    assert run.clients["round"].dtype == np.int64
    assert len(list(_new_rounds(Watch(folder), 0))) == 2
    result = fedssl("report", folder)
    assert result.exit_code == 0, result.output


def test_a_run_without_its_weights_says_so(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / "summary.json").write_text(
        json.dumps({"name": "x", "rounds": 3, "seconds": 1.0, "ema_accuracy": 0.5})
    )
    with pytest.raises(reading.InputError, match="any more"):
        Run(folder).weights()


def test_a_model_of_a_finished_run_is_its_last_phases(tmp_path):
    experiment = small_experiment(rounds=None, phases=PHASES)
    record(experiment, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.weights()[0] == 3
    with torch.no_grad():
        assert run.model()(torch.zeros(2, *run.spec.shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.json", b"{garb"),
        ("data.json", b"[1]"),
        ("summary.json", b"\xff\xfe\x00"),
        ("summary.json", b"{}"),
        ("environment.json", b"{"),
        ("rounds.csv", b""),
        ("rounds.csv", b"\xff\xfe"),
        ("rounds.csv", None),
        ("clients.csv", None),
        ("partition.csv", b"hello"),
        ("partition.csv", None),
        ("ema.safetensors", b"cut"),
    ],
)
def test_a_damaged_record_is_one_error_that_names_the_file(name, content, tmp_path):
    """In whatever looks at it; a file that a command does not need may be as it will."""
    record(small_experiment(rounds=2), tmp_path / "run")
    file = tmp_path / "run" / name
    file.write_bytes(content or b"")
    if content is None:
        file.unlink()
    results = [
        fedssl("report", tmp_path / "run"),
        fedssl("compare", tmp_path / "run", "--out", tmp_path / "out"),
        fedssl("export", tmp_path / "run", "--format", "safetensors", "--out", tmp_path / "m"),
    ]
    assert any(result.exit_code for result in results)
    for result in results:
        assert result.exit_code in (0, 2), result.output
        if result.exit_code:
            refused(result, name if name != "ema.safetensors" else "damaged weights")


def test_a_record_that_lacks_rounds_is_not_taken_for_a_whole_one(tmp_path):
    record(small_experiment(rounds=3), tmp_path / "run")
    table = tmp_path / "run" / "rounds.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    for command in ("report", "compare"):
        refused(fedssl(command, tmp_path / "run"), "has 2 rounds, and its summary.json says 3")
