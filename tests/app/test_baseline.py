"""`fedssl baseline` measures scikit-learn's classifiers on a federation's labels, seed by seed."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KNeighborsClassifier

from fedssl.metrics.yardsticks import yardsticks
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.table import tables_of
from fedssl.views.run import Run
from tests.helpers import federation_of, fedssl, refused, small_experiment, small_toml
from tests.views.comparison.records import record

DIGITS = "experiments/digits/supervised.toml"


def test_digits_have_the_accuracies_that_a_review_measured(tmp_path):
    """Label spreading on seeds 0 to 4: 93.9, 93.1, 95.6, 93.1 and 92.8 %, measured outside this repository."""
    out = tmp_path / "baseline.csv"
    result = fedssl("baseline", DIGITS, "--seeds", 5, "--out", out)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    spread = table[table["classifier"] == "label spreading"]
    assert (spread["accuracy"] * 100).round(1).tolist() == [93.9, 93.1, 95.6, 93.1, 92.8]
    assert spread["seed"].tolist() == [0, 1, 2, 3, 4]
    nearest = table[table["classifier"] == "nearest neighbor"]["accuracy"]
    assert (nearest * 100).round(1).tolist() == [85.8, 87.8, 87.8, 86.7, 86.7]
    assert "93.7 ± 1.1" in result.output
    assert "40 labels" in result.output


def test_the_nearest_neighbor_learns_from_labeled_images_alone():
    federation = federation_of(small_experiment())
    found = {one.name: one.accuracy for one in yardsticks(federation)}
    rows = np.flatnonzero(federation.labeled)
    train = federation.data.train.read(rows).reshape(len(rows), -1) / 255
    test = federation.held_out.images.reshape(len(federation.held_out), -1) / 255
    model = KNeighborsClassifier(1).fit(train, federation.given[rows])
    expected = model.score(test, federation.held_out.labels)
    assert found["nearest neighbor"] == pytest.approx(expected, abs=0.01)


def test_what_cannot_be_measured_is_one_clear_error(tmp_path):
    own = small_toml(tmp_path / "own.toml", federation={"private": True})
    refused(fedssl("baseline", own), "private")
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    refused(fedssl("baseline", DIGITS, "--out", kept), "is there already")
    assert kept.read_text() == "mine"
    refused(fedssl("baseline", DIGITS, "--out", tmp_path / "no" / "x.csv"), "--out")
    refused(fedssl("baseline", tmp_path / "none.toml"), "none.toml")


def test_a_comparison_has_yardsticks_on_request(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    assert fedssl("run", file, "--plain", "--out", tmp_path / "run").exit_code == 0
    plain = fedssl("compare", tmp_path / "run", "--out", tmp_path / "a")
    assert "yardsticks" not in plain.output
    result = fedssl("compare", tmp_path / "run", "--out", tmp_path / "b", "--yardsticks")
    assert result.exit_code == 0, result.output
    assert "logistic regression" in result.output
    written = pd.read_csv(tmp_path / "b" / "comparison_yardsticks.csv")
    assert written["classifier"].tolist() == [
        "logistic regression",
        "nearest neighbor",
        "label spreading",
    ]
    assert "label spreading" in (tmp_path / "b" / "comparison.html").read_text()


def test_yardsticks_are_named_by_the_data_and_measured_once_for_each(tmp_path, monkeypatch):
    """Two methods at two learning rates under two skews with two numbers of labels: eight groups, two of labels.

    Which client holds an image is nothing to the classifiers.
    """
    asked = []

    def fake(federations):
        asked.append(federations)
        return pd.DataFrame([{"classifier": "nearest neighbor", "seed": 0, "accuracy": 0.5}])

    monkeypatch.setattr(Run, "federation", property(lambda run: federation_of(run.experiment)))

    monkeypatch.setattr("fedssl.views.comparison.comparison.measure", fake)
    skews, rates, methods = (0.5, 5.0), (0.01, 0.05), ("supervised", "fixmatch")
    for alpha, lr, kind, labels in itertools.product(skews, rates, methods, (2, 4)):
        settings = {
            "federation": {
                "partition": {"kind": "dirichlet", "alpha": alpha},
                "labels": {"per_class": labels},
            },
            "train": {"lr": lr},
            "method": {"kind": kind},
        }
        path = tmp_path / f"{alpha}-{lr}-{kind}-{labels}"
        record(path, [0.5], partition=f"split of {alpha}, {labels}", **settings)
    found = Comparison.of_runs([tmp_path], force=False, yardsticks=True)
    assert len(found.groups) == 8
    assert len(asked) == 2
    table = next(table for table in tables_of(found) if "yardsticks" in table.title)
    names = [row[0] for row in table.rows]
    assert names == [
        f"alpha 0.5, per_class {labels}; alpha 5, per_class {labels}: nearest neighbor"
        for labels in (2, 4)
    ]


def test_yardsticks_need_the_images_of_the_runs(tmp_path):
    record(tmp_path / "a", [0.5], name="a")
    result = fedssl("compare", tmp_path / "a", "--yardsticks", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "note: no yardsticks: " in result.output
    assert "images" in result.output.partition("no yardsticks")[2]
