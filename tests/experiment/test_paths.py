"""Relative paths of an experiment file: below the current folder, or else below the folder of the file."""

from pathlib import Path

import numpy as np
import pytest
import tomli_w

from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.paths import make_paths_absolute
from tests.helpers import SMALL


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Return (here, beside): the current folder, and another one for the experiment file and its data."""
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder in (here, beside):
        folder.mkdir()
    monkeypatch.chdir(here)
    return here, beside


def write_experiment(folder: Path, **settings) -> Path:
    file = folder / "e.toml"
    file.write_text(tomli_w.dumps({**SMALL, **settings}))
    return file


def write_images(folder: Path) -> None:
    images = np.zeros((20, 8, 8), np.uint8)
    np.savez(folder / "own.npz", images=images, labels=np.arange(20) % 2)


def test_data_beside_the_file_is_found_from_any_folder(places):
    _, beside = places
    write_images(beside)
    file = write_experiment(beside, data={"source": "npz:own.npz"})
    experiment = Experiment.load(file)
    assert experiment.data.name == str(beside / "own.npz")
    assert experiment.plans[0].data == experiment.data
    assert len(experiment.data.dataset(0).train) > 0


def test_data_below_the_current_folder_comes_first_and_keeps_its_name(places):
    here, beside = places
    for folder in places:
        write_images(folder)
    file = write_experiment(beside, data={"source": "npz:own.npz"})
    experiment = Experiment.load(file)
    assert experiment.data.name == "own.npz"
    assert make_paths_absolute(experiment).data.name == str(here / "own.npz")


@pytest.mark.parametrize(("source", "kind"), [("folder:lost", "folder"), ("npz:lost", "file")])
def test_the_error_names_every_path_that_was_tried(source, kind, places):
    here, beside = places
    experiment = Experiment.load(write_experiment(beside, data={"source": source}))
    assert make_paths_absolute(experiment).data.name == "lost"
    with pytest.raises(InputError) as error:
        experiment.data.prepare()
    assert f"there is no such {kind} (tried {here / 'lost'} and {beside / 'lost'})" in str(
        error.value
    )


def test_a_changed_setting_leaves_the_paths_that_were_tried(places):
    here, beside = places
    experiment = Experiment.load(write_experiment(beside, data={"source": "folder:lost"}))
    with pytest.raises(InputError) as error:
        experiment.with_settings("seed=3").data.prepare()
    assert f"(tried {here / 'lost'} and {beside / 'lost'})" in str(error.value)
    with pytest.raises(InputError) as error:
        experiment.with_settings("data.source=folder:other").data.prepare()
    assert f"(tried {here / 'other'})" in str(error.value)


def test_an_absolute_path_and_the_home_folder_are_tried_alone(places, monkeypatch):
    here, beside = places
    monkeypatch.setenv("HOME", str(here))
    for name, tried in ((str(here / "lost"), ""), ("~/lost", f" (tried {here / 'lost'})")):
        experiment = Experiment.load(write_experiment(beside, data={"source": f"folder:{name}"}))
        with pytest.raises(InputError) as error:
            experiment.data.prepare()
        assert f"folder:{name}: there is no such folder{tried}; check" in str(error.value)


def test_a_table_of_times_is_found_like_data_and_a_default_is_no_path_of_the_file(places):
    _, beside = places
    (beside / "data").mkdir()  # the default of data.root
    (beside / "times.csv").write_text("client,start,end\n0,0,1\n")
    availability = {"kind": "schedule", "path": "times.csv"}
    file = write_experiment(beside, data={"source": "mnist"}, system={"availability": availability})
    experiment = Experiment.load(file)
    assert experiment.system.availability.path == beside / "times.csv"
    assert experiment.data.root == Path("data")
    assert Experiment.load(file, ["data.root=data"]).data.root == beside / "data"
