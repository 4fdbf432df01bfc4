"""`fedssl new`: the file that it writes is valid, runs, and says what was found in a folder of images."""

import sys

import numpy as np
import pytest
from PIL import Image

from fedssl.experiment.experiment import Experiment
from tests.helpers import fedssl, finished, refused


def draw(folder, count, sides=(24,), channels=3, seed=0):
    """Write noisy images of the given sides, in turn, into a folder."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        side = sides[number % len(sides)]
        shape = (side, side, 3) if channels == 3 else (side, side)
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(folder / f"{number}.png")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def run_it(file):
    """Assert that a file is valid as it is, and that its first round trains."""
    finished(fedssl("validate", file))
    quick = ("rounds=1", "train.local_steps=1", "train.batch_size=4", "engine.kind=serial")
    settings = [word for setting in quick for word in ("--set", setting)]
    finished(fedssl("run", file, *settings, "--plain", "--out", "out"))


def test_without_a_name_it_is_the_digits(here):
    result = fedssl("new")
    finished(result)
    assert "fedssl run digits.toml" in result.output
    run_it("digits.toml")


def test_sites_sizes_colors_and_images_without_a_class_are_found(here):
    for number, cls in enumerate(("ring", "dot")):
        draw(here / "cells" / cls / "site_a", 6, (40, 61), 3, number)
        draw(here / "cells" / cls / "site_b", 6, (50,), 1, number)
    draw(here / "cells" / "unlabeled" / "site_b", 9, (50,))
    finished(fedssl("new", "--data", "cells"))
    text = (here / "cells.toml").read_text()
    for found in (
        "2 classes: dot 12, ring 12",
        "24 images have a class, 9 have none",
        "40x40 to 61x61 pixels",
        "12 gray, 21 color",
        "site_a 12, site_b 21",
    ):
        assert found in text
    experiment = Experiment.load("cells.toml")
    assert experiment.data.size == 32
    assert experiment.data.channels == 3
    assert experiment.federation.clients == 2
    assert experiment.federation.partition.to_dict()["column"] == "folder"
    assert experiment.federation.labels.per_class == "all"
    run_it("cells.toml")
    refused(fedssl("new", "other", "--data", "cells", "--clients", 3), "has 2 sites")


def test_images_of_one_size_with_all_labels_are_left_as_they_are(here):
    for number, cls in enumerate("abc"):
        draw(here / "photos" / "train" / cls, 20, (12,), 1, number)
        draw(here / "photos" / "test" / cls, 4, (12,), 1, 9 + number)
    finished(
        fedssl("new", "sub/mine", "--data", "photos", "--method", "supervised", "--clients", 4)
    )
    experiment = Experiment.load("sub/mine.toml")
    assert (experiment.data.size, experiment.data.channels) == (None, None)
    assert experiment.data.kind == f"folder:{here / 'photos'}"
    assert experiment.federation.labels.fraction == 0.1
    assert "12 test images of their own" in (here / "sub" / "mine.toml").read_text()
    run_it("sub/mine.toml")


def test_nothing_is_overwritten(here):
    (here / "digits.toml").write_text("mine")
    refused(fedssl("new"), "digits.toml: is there already", "fedssl new NAME")
    assert (here / "digits.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "fixmach"), ("did you mean 'fixmatch'?",)),
        (("--data", "nowhere"), ("there is no such folder",)),
        (("--data", "empty"), ("holds 0 class folders",)),
        (("--data", "hospitals"), ("look like sites", "cat/site_a/ in place of site_a/cat/")),
        (("--data", "broken"), ("none of 2 images can be opened",)),
    ],
)
def test_what_cannot_run_is_refused_and_nothing_is_written(here, arguments, words):
    (here / "empty").mkdir()
    for site in ("site_a", "site_b"):
        for cls in ("cat", "dog"):
            draw(here / "hospitals" / site / cls, 1)
    for cls in "ab":
        (here / "broken" / cls).mkdir(parents=True)
        (here / "broken" / cls / "x.png").write_text("no image")
    refused(fedssl("new", *arguments), *words)
    assert not list(here.glob("*.toml"))


def test_strange_names_stay_within_comments_and_texts(here):
    for number, cls in enumerate(('a"b', "line\nbreak = 1", "c")):
        draw(here / 'my "images"' / cls, 8, (12,), 1, number)
    finished(fedssl("new", "--data", 'my "images"'))
    experiment = Experiment.load('my "images".toml')
    assert experiment.data.kind == 'folder:my "images"'
    assert experiment.name == "my-images"


@pytest.mark.parametrize("given", ["scans.npz", "npz:scans.npz"])
def test_an_npz_file_is_looked_at_too(given, here):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 80, 72), np.uint8)
    labels = np.arange(60) % 3 - 1
    np.savez(here / "scans.npz", images=images, labels=labels, class_names=["cat", "dog"])
    finished(fedssl("new", "--data", given))
    text = (here / "scans.toml").read_text()
    assert "2 classes: cat 20, dog 20." in text
    assert "40 images have a class, 20 have none" in text
    assert "All images have 80x72 pixels." in text
    experiment = Experiment.load("scans.toml")
    assert experiment.data.kind == "npz:scans.npz"
    assert experiment.federation.labels.per_class == "all"
    finished(fedssl("validate", "scans.toml"))


def test_a_folder_may_be_named_as_a_source_and_others_are_written_by_hand(here):
    for number, cls in enumerate("ab"):
        draw(here / "photos" / cls, 20, (12,), 1, number)
    finished(fedssl("new", "--data", "folder:photos"))
    assert Experiment.load("photos.toml").data.kind == "folder:photos"
    refused(fedssl("new", "x", "--data", "hf:mnist"), "--data", 'source = "hf:mnist" under [data]')
    refused(fedssl("new", "x", "--data", "npz:none.npz"), "there is no such file")
    np.savez(here / "one.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.zeros(4, int))
    refused(fedssl("new", "x", "--data", "one.npz"), "has one class only", "labels of two classes")
    assert not (here / "x.toml").exists()
