"""Why a line won or lost: facts of its pseudo-labels and classes, and silence where luck decides."""

import json

import numpy as np
import pytest

from fedssl.views.comparison.comparison import Comparison
from tests.views.comparison.records import record


def confused(path, counts):
    """Give a run's closer look a confusion matrix of two classes: true class by predicted class."""
    look = json.loads((path / "evaluation.json").read_text())
    look["models"]["ema"]["confusion"] = counts
    (path / "evaluation.json").write_text(json.dumps(look))


def lines(folder, ours, *, right=(0.9, 0.9)):
    """Record two lines of three seeds: one right on 60 images of 100, and ours, each with its share of class two."""
    for name, accuracy in (("base", 0.6), ("ours", ours)):
        for seed in range(3):
            path = record(folder / name / str(seed), [accuracy] * 2, name=name, seed=seed)
            correct = round(accuracy * 100)
            confused(path, [[40, 10], [50 - (correct - 40), correct - 40]])


def notes_of(folder):
    return [note for note in Comparison.of_runs([folder], force=False).notes if "against" in note]


def test_a_line_that_wins_says_by_which_class_and_with_which_pseudo_labels(tmp_path):
    """By hand: class two goes from 20 to 40 of 50 images right, class one stays at 40 of 50."""
    lines(tmp_path, 0.8)
    (note,) = notes_of(tmp_path)
    assert note == (
        "ours gains 20.0 points against base: it uses pseudo-labels for 50 % of the unlabeled images, and 90.0 % of them are right; "
        "class one gains most (+40), class zero least (+0)"
    )


def test_a_line_that_loses_with_worse_labels_than_the_baseline_says_so(tmp_path):
    lines(tmp_path, 0.45)
    for file in tmp_path.glob("ours/*/summary.json"):
        summary = json.loads(file.read_text())
        file.write_text(json.dumps(summary | {"pseudo_label_accuracy": 0.4}))
    (note,) = notes_of(tmp_path)
    assert note.startswith("ours loses 15.0 points against base: it uses pseudo-labels for 50 %")
    assert "40.0 % of them are right, fewer than the model of the baseline has right (60 %)" in note
    assert note.endswith("; no class gains, class one loses most (-30)")


def test_a_line_on_which_one_class_gains_and_one_loses_says_both(tmp_path):
    lines(tmp_path, 0.8)
    for path in tmp_path.glob("ours/*"):
        confused(path, [[50, 0], [40, 10]])
    (note,) = notes_of(tmp_path)
    assert note.endswith("; class zero gains most (+20), class one loses most (-20)")


def test_where_the_unlabeled_images_have_no_label_nobody_knows_how_many_are_right(tmp_path):
    lines(tmp_path, 0.8)
    for file in tmp_path.glob("ours/*/summary.json"):
        summary = json.loads(file.read_text())
        file.write_text(json.dumps(summary | {"pseudo_label_accuracy": None}))
    (note,) = notes_of(tmp_path)
    assert "for 50 % of the unlabeled images, and nobody knows how many of them are right;" in note


def test_a_line_whose_weights_know_the_held_out_images_owes_its_gain_to_no_pseudo_labels(tmp_path):
    lines(tmp_path, 0.8)
    file = tmp_path / "ours" / "1" / "data.json"
    leak = "model.weights: the run that gives the weights has trained on images that this run holds out (9 of 10; r): too high."
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_remark": leak}))
    (note,) = notes_of(tmp_path)
    assert note == (
        "ours gains 20.0 points against base: class one gains most (+40), class zero least (+0)"
    )
    assert f"ours seed 1: {leak}" in Comparison.of_runs([tmp_path], force=False).notes


def test_luck_needs_no_reason(tmp_path):
    lines(tmp_path, 0.61)
    assert notes_of(tmp_path) == []


def test_without_a_confusion_matrix_no_class_is_named(tmp_path):
    lines(tmp_path, 0.8)
    for file in tmp_path.glob("*/*/evaluation.json"):
        look = json.loads(file.read_text())
        del look["models"]["ema"]["confusion"]
        file.write_text(json.dumps(look))
    (note,) = notes_of(tmp_path)
    assert "class" not in note.replace("classes", "")


@pytest.mark.parametrize("count", [8, 9])
def test_many_pairs_have_no_reasons(tmp_path, count):
    record(tmp_path / "0", [0.1] * 2, name="base")
    for i, accuracy in enumerate(np.linspace(0.6, 0.9, count)):
        record(tmp_path / str(i + 1), [float(accuracy)] * 2, name=f"line-{i}")
    assert len(notes_of(tmp_path)) == (count if count <= 8 else 0)
