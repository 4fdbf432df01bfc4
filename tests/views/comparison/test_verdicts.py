"""Recorded runs become tests of lines: by their accuracies, and by what their models say of the held-out images."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fedssl.app.commands.compare import compare_runs
from fedssl.core.console import Console
from fedssl.views.closer_look import EVALUATION, closer_look
from fedssl.views.comparison import verdicts
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.table import tables_of
from fedssl.views.run import Run
from tests.helpers import fedssl, small_toml
from tests.views.comparison.records import record

IMAGES = 400


@pytest.fixture
def looks(monkeypatch):
    """A closer look at hand-written runs: by run folder, which of 400 images its model names correctly."""
    right = {}

    def look(run):
        predicted = np.where(right[run.path.name], 1, 0)
        return {
            "images": [f"{i:x}" for i in range(IMAGES)],
            "labels": [1] * IMAGES,
            "models": {"ema": {"predicted": predicted.tolist()}},
        }

    monkeypatch.setattr(verdicts, "closer_look", look)
    return right


def draw(share, seed):
    return np.random.default_rng(seed).random(IMAGES) < share


def test_lines_are_told_apart_by_seeds_and_by_images_together(tmp_path, looks):
    """Ours and theirs are ten points better; by images, theirs is not: its final model has the baseline's predictions."""
    for seed in range(4):
        base = draw(0.8, seed)
        for name, accuracy, right in (
            ("base", 0.80 + seed / 1000, base),
            ("ours", 0.90 + seed / 1001, base | draw(0.5, 100 + seed)),
            ("theirs", 0.90 + seed / 1002, base),
        ):
            folder = f"{name}-{seed}"
            looks[folder] = right
            record(tmp_path / folder, [accuracy], name=name, seed=seed)
    found = Comparison.of_runs([tmp_path], force=False)
    pairs = found.verdicts.pairs.set_index("label")
    assert (pairs.p_seeds < 0.001).all()
    assert pairs.p_images.tolist() == pytest.approx([1 / 2001, 1])
    assert pairs.apart.tolist() == [True, False]
    assert pairs.only_first.tolist() == [0, 0]
    assert found.verdicts.letters == {"ours": "a", "theirs": "ab", "base": "b"}
    assert found.notes == ()
    accuracies, _, luck = tables_of(found)[:3]
    assert [row[accuracies.columns.index("like")] for row in accuracies.rows] == ["b", "a", "ab"]
    assert [row[-1] for row in luck.rows] == ["yes", "no"]
    compare_runs([tmp_path], tmp_path / "out", Console(file=io.StringIO()), force=False)
    written = pd.read_csv(tmp_path / "out" / "comparison_tests.csv")
    pd.testing.assert_frame_equal(written, found.verdicts.pairs)


def test_one_seed_is_tested_by_images_alone_and_says_so(tmp_path, looks):
    looks |= {"a": draw(0.5, 0), "b": draw(0.9, 1)}
    record(tmp_path / "a", [0.5], name="a")
    record(tmp_path / "b", [0.9], name="b")
    found = Comparison.of_runs([tmp_path], force=False)
    assert found.verdicts.pairs.p_seeds.isna().all()
    assert found.verdicts.pairs.apart.tolist() == [True]
    assert "which model is better, not which method" in tables_of(found)[1].note


def test_records_without_models_are_tested_by_seeds_alone(tmp_path):
    for seed in range(3):
        record(tmp_path / f"a{seed}", [0.5 + seed / 100], name="a", seed=seed)
        record(tmp_path / f"b{seed}", [0.9 + seed / 101], name="b", seed=seed)
    (tmp_path / "b1" / EVALUATION).unlink()
    found = Comparison.of_runs([tmp_path], force=False)
    assert found.verdicts.pairs.p_images.isna().all()
    assert found.verdicts.letters == {"a": "b", "b": "a"}
    assert any(note.startswith("no test over images: ") for note in found.notes)


def test_other_held_out_images_are_not_tested_image_by_image(tmp_path):
    for name in "ab":
        path = record(tmp_path / name, [0.5], name=name)
    look = json.loads((path / EVALUATION).read_text())
    (path / EVALUATION).write_text(json.dumps({**look, "images": look["images"][::-1]}))
    found = Comparison.of_runs([tmp_path], force=False)
    assert found.notes[-1] == "no test over images: b: has other held-out images than a"
    assert found.verdicts.letters == {}


def test_a_line_that_lacks_a_seed_of_the_first_line_is_not_tested(tmp_path, looks):
    for name in ("a0", "a1", "b0", "b1", "c0", "d7"):  # that d cannot be paired is said anyway
        looks[name] = draw(0.8, int(name[1]))
        record(tmp_path / name, [0.5], name=name[0], seed=int(name[1]))
    found = Comparison.of_runs([tmp_path], force=False)
    assert found.verdicts.letters.keys() == {"a", "b"}
    assert [note.partition(":")[0] for note in found.notes] == ["d", "c"]


def test_too_many_lines_are_not_tested(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "MOST_LINES", 2)
    for name in "abc":
        record(tmp_path / name, [0.5], name=name)
    found = Comparison.of_runs([tmp_path], force=False)
    assert found.verdicts.letters == {}
    assert any("more than 2 lines" in note for note in found.notes)


def test_seeds_with_images_of_their_own_have_wider_intervals(tmp_path):
    """100 held-out and 400 training images: the half-width of two seeds is larger by sqrt((1/2 + 1/4) / (1/2))."""
    halves = []
    for own in (False, True):
        for seed in range(2):
            facts = {"num_held_out": 100} | ({"held_out_sha256": str(seed)} if own else {})
            record(tmp_path / str(own) / f"{seed}", [0.5 + seed / 10], seed=seed, facts=facts)
        line = Comparison.of_runs([tmp_path / str(own)], force=False).lines.iloc[0]
        halves.append(line.ema_accuracy_ci95_high - line.ema_accuracy)
    assert halves[1] / halves[0] == pytest.approx(np.sqrt(1.5))


def test_a_run_says_what_its_models_predict_and_an_older_record_is_looked_at_again(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    assert fedssl("run", file, "--plain", "--out", tmp_path / "run").exit_code == 0
    run = Run(tmp_path / "run")
    found = closer_look(run)
    right = np.array(found["models"]["ema"]["predicted"]) == np.array(found["labels"])
    assert right.mean() == pytest.approx(run.rounds.ema_accuracy.iloc[-1])
    assert len(set(found["images"])) == len(found["images"]) == len(right)
    older = json.loads((run.path / EVALUATION).read_text())
    del older["images"]
    (run.path / EVALUATION).write_text(json.dumps(older))
    assert closer_look(run) == found
    assert json.loads((run.path / EVALUATION).read_text()) == found
    shutil.rmtree(tmp_path / "run")
