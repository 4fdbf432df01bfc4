"""A run that begins with another run's weights says how many of its held-out images that run has trained on."""

import json

import numpy as np
import pytest

from fedssl.app.simulation import Engine
from fedssl.models.weights_file import IN_A_RUN
from fedssl.record.leaks import remark_on_weights
from fedssl.record.run_directory import RunDirectory
from tests.helpers import federation_of, fedssl, finished, small_experiment, small_toml

WHOLE = {"data": {"train_size": None}}


@pytest.fixture
def giving(tmp_path):
    """Return a function that writes the record of a run that gives weights, which has not trained."""

    def write(name="giving", **settings):
        experiment = small_experiment(**settings)
        directory = RunDirectory(tmp_path / name)
        directory.began(experiment, federation_of(experiment))
        directory.close()
        (directory.path / IN_A_RUN).touch()
        return directory.path

    return write


def remark_of(weights, **settings):
    experiment = small_experiment(model={"weights": str(weights)}, **settings)
    return remark_on_weights(experiment, federation_of(experiment))


def held_out_rows(**settings):
    return set(federation_of(small_experiment(**settings)).held_out.rows.tolist())


def test_the_remark_counts_the_held_out_images_of_another_seed_that_the_run_has_not_held_out(
    giving,
):
    path = giving(**WHOLE)
    wanted, own = held_out_rows(seed=1), held_out_rows(seed=0)
    said = remark_of(path, seed=1)
    assert f"({len(wanted - own)} of {len(wanted)} test images; {path})" in said
    assert "Use the seed of that run, 0," in said


def test_training_images_that_the_run_left_out_do_not_count(giving):
    path = giving(data={"train_size": 100})
    federation = federation_of(small_experiment(data={"train_size": 100}))
    trained = set(federation.data.train.rows.tolist())
    count = len(held_out_rows(seed=1) & trained)
    assert f"({count} of " in remark_of(path, seed=1)


@pytest.mark.parametrize(
    "settings", [{}, {"federation": {"clients": 3}}, {"data": {"train_size": 200}}]
)
def test_the_same_held_out_images_give_no_remark(giving, settings):
    assert remark_of(giving(**WHOLE), **settings) == ""


def test_validation_images_of_the_same_seed_were_training_images(giving):
    validation = {"data": {"train_size": None, "validation": 0.1}}
    said = remark_of(giving(**WHOLE), **validation)
    assert "144 of 144 validation images" in said
    assert "Hold out the same images in both runs" in said
    assert remark_of(giving("same", **validation), **validation) == ""


def test_other_data_and_test_images_of_their_own_give_no_remark(giving, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (60, 8, 8), dtype=np.uint8), np.arange(60) % 10
    np.savez(
        tmp_path / "fixed.npz", images=images, labels=labels, test_images=images, test_labels=labels
    )
    np.savez(tmp_path / "drawn.npz", images=images, labels=labels)
    fixed, drawn = ({"source": f"npz:{tmp_path / name}.npz"} for name in ("fixed", "drawn"))
    few = {"federation": {"clients": 2, "sample": 2}}
    digits, npz = giving(**WHOLE), giving("npz", data={**fixed, "train_size": None}, **few)
    assert remark_of(digits, seed=1, data={**drawn, "train_size": None}, **few) == ""
    assert remark_of(npz, seed=1, data={**fixed, "train_size": None}, **few) == ""
    same = giving("drawn", data={**drawn, "train_size": None}, **few)
    assert "of 12 test images" in remark_of(same, seed=1, data={**drawn, "train_size": None}, **few)


def test_the_run_before_the_run_that_gives_the_weights_counts_too(giving):
    first = giving("first", **WHOLE)
    second = giving("second", seed=1, model={"weights": str(first)})
    said = remark_of(second, seed=1)
    assert "test images" in said
    assert "Use the seed of that run, 0, 1," in said
    assert remark_of(giving("third", seed=1), seed=1) == ""


@pytest.mark.parametrize("name", ["experiment.toml", "partition.csv"])
def test_a_damaged_record_gives_no_remark(giving, name):
    path = giving(**WHOLE)
    (path / name).write_text("row,client\n[", encoding="utf-8")
    assert remark_of(path, seed=1) == ""


def test_validate_the_run_its_record_and_its_page_say_it(tmp_path, caplog):
    first = tmp_path / "first"
    small = {"rounds": 1, "method": {"kind": "supervised"}}
    experiment = small_experiment(**small)
    with Engine() as engine:
        directory = RunDirectory(first)
        engine.run(experiment, [directory])
    toml = small_toml(tmp_path / "e.toml", seed=1, model={"weights": str(first)}, **small)
    found = fedssl("validate", toml, "--no-step")
    finished(found)
    assert "has trained on images that this run holds out" in " ".join(found.output.split())
    finished(fedssl("run", toml, "--out", tmp_path / "second", "--plain"))
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("has trained on images that this run holds out" in each for each in said)
    recorded = json.loads((tmp_path / "second" / "data.json").read_text())["weights_remark"]
    assert recorded in said
    assert recorded.split("(")[0] in (tmp_path / "second" / "report.html").read_text()
    assert json.loads((first / "data.json").read_text())["weights_remark"] == ""
