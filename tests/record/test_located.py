"""A run is opened from any current folder: its data are found where it found them, and its identity is the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from fedssl.record.located import read_located
from fedssl.record.provenance import environment
from fedssl.record.resume import refuse_changes
from fedssl.record.run_path import ENVIRONMENT, EXPERIMENT
from tests.helpers import fedssl, finished, small_experiment, small_toml

SITES = {"sites": {"bern": "npz:own.npz"}, "clients": 1, "sample": 1}
TIMES = {"availability": {"kind": "schedule", "path": "times.csv"}}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Return (first, other): the folder in which runs begin, which has the data, and another folder."""
    first, other = tmp_path / "first", tmp_path / "other"
    for folder in (first, other):
        folder.mkdir()
    images = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8)
    np.savez(first / "own.npz", images=images, labels=np.arange(40) % 2)
    (first / "times.csv").write_text("client,start,end\n0,0,1\n")
    (first / "old").mkdir()
    monkeypatch.chdir(first)
    return first, other


def record(run, experiment, facts):
    """Write the parts of a record that say which experiment ran, and where."""
    run.mkdir()
    (run / EXPERIMENT).write_text(experiment.to_toml(), encoding="utf-8")
    (run / ENVIRONMENT).write_text(json.dumps(facts))
    return run


@pytest.mark.parametrize(
    ("settings", "path", "found"),
    [
        ({"data": {"source": "npz:own.npz"}}, "data.name", "own.npz"),
        ({"federation": SITES}, "federation.sites.bern.path", "own.npz"),
        ({"model": {"weights": "old"}}, "model.weights", "old"),
        ({"rounds": None, "phases": [{"rounds": 1, "model": {"weights": "old"}}]}, "plans.0.model.weights", "old"),
        ({"system": TIMES}, "system.availability.path", "times.csv"),
    ],
    ids=["data", "site", "weights", "weights of a phase", "table of times"],
)  # fmt: skip
def test_every_path_of_a_record_is_found_where_the_run_found_it(
    places, monkeypatch, settings, path, found
):
    first, other = places
    run = record(first / "run", small_experiment(**settings), environment())
    monkeypatch.chdir(other)
    value = read_located(run)
    for part in path.split("."):
        value = (
            value[int(part) if part.isdecimal() else part]
            if isinstance(value, dict | tuple)
            else getattr(value, part)
        )
    assert str(value) == str(first / found)


def test_the_identity_of_a_run_is_the_same_in_every_folder(places, monkeypatch):
    first, other = places
    experiment = small_experiment(data={"source": "npz:own.npz"})
    run = record(first / "run", experiment, environment())
    file = first / "e.toml"
    file.write_text(experiment.to_toml(), encoding="utf-8")
    monkeypatch.chdir(other)
    refuse_changes(run, Experiment.load(file))  # absolute here, relative in the record
    refuse_changes(run, Experiment.load(Path("..", "first", "e.toml")))
    refuse_changes(run, small_experiment(data={"source": "npz:../first/own.npz"}))
    refuse_changes(run, experiment)
    refuse_changes(run, read_located(run))
    np.savez(other / "another.npz", images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 0, 1])
    with pytest.raises(InputError, match=r"data.source was .npz:own.npz. and is .npz:another.npz."):
        refuse_changes(run, small_experiment(data={"source": "npz:another.npz"}))


def test_an_older_record_and_one_whose_data_have_gone_say_where_was_searched(places, monkeypatch):
    first, other = places
    experiment = small_experiment(data={"source": "npz:own.npz"})
    older = record(first / "older", experiment, {})
    assert read_located(older).data.name == "own.npz"
    gone = record(first / "gone", experiment, {"folder": str(first / "elsewhere")})
    monkeypatch.chdir(other)
    tried = f"{first / 'elsewhere' / 'own.npz'} and {other / 'own.npz'} and {gone / 'own.npz'}"
    with pytest.raises(InputError) as error:
        read_located(gone).data.prepare()
    assert f"there is no such file (tried {tried}); check the path" in str(error.value)


def test_a_setting_of_the_one_who_goes_on_is_below_the_current_folder(places, monkeypatch):
    first, other = places
    run = record(first / "run", small_experiment(data={"source": "mnist"}), environment())
    for folder in places:
        (folder / "images").mkdir()
    monkeypatch.chdir(other)
    assert str(read_located(run, ["data.root=images"]).data.root) == "images"


def test_commands_open_a_run_from_another_folder(places, monkeypatch):
    first, other = places
    method = first / "own_of_a_run.py"
    method.write_text(
        "from fedssl.methods.supervised import Supervised\nclass Own(Supervised): ...\n"
    )
    data = {"source": "npz:own.npz", "train_size": None}
    labels = {"federation": {"labels": {"per_class": 2}}}
    file = small_toml(first / "e.toml", rounds=1, data=data, **labels)
    own = ("--set", "method.kind=own_of_a_run.py", "--set", "method.threshold=unset", "--set", "method.unlabeled_ratio=unset")  # fmt: skip
    finished(fedssl("run", file, "--plain", "--out", "run", *own))
    monkeypatch.chdir(other)
    finished(fedssl("run", first / "run", "--resume", "--plain"))
    result = fedssl("predict", first / "run", first / "own.npz", "--plugins")
    finished(result)
    assert "of these were training images" in result.output
