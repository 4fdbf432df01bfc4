"""Recorded runs are tested against each other: by their accuracies, and by what their models say of the held-out images."""

import io
import json

import numpy as np
import pandas as pd
import pytest

from fedssl.app.commands.compare import show_comparison
from fedssl.core.console import Console
from fedssl.views.closer_look import EVALUATION, closer_look
from fedssl.views.comparison import verdicts
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.table import tables_of
from fedssl.views.run import Run
from tests.helpers import fedssl, small_toml
from tests.views.comparison.records import record


def compared(folder, **options):
    return Comparison.of_runs([folder], force=False, **options)


def test_lines_are_told_apart_by_seeds_and_images_together(tmp_path):
    """Ours is ten points better on every seed, theirs is two, which a hundred images cannot tell."""
    for seed in range(4):
        for name, accuracy in (("base", 0.80), ("ours", 0.90), ("theirs", 0.82)):
            record(tmp_path / f"{name}-{seed}", [accuracy + seed / 100], name=name, seed=seed)
    found = compared(tmp_path)
    pairs = found.verdicts.pairs.set_index("label")
    assert pairs.gain.tolist() == pytest.approx([0.1, 0.02])
    assert pairs.only_line.tolist() == [40, 8]
    assert pairs.only_first.tolist() == [0, 0]
    # The seeds agree, so all the error is the images': ten of a hundred are ours alone, others from seed to seed.
    assert 0.6 < pairs.error["ours"] / np.sqrt(0.1 * 0.9 / 100) <= 1
    assert pairs.apart.tolist() == [True, False]
    assert found.verdicts.letters == {"ours": "a", "theirs": "b", "base": "b"}
    (reason,) = found.notes
    assert reason.startswith("ours gains 10.0 points against base: ")
    accuracies, luck = (
        next(table for table in tables_of(found) if word in table.columns)
        for word in ("like", "apart")
    )
    assert [row[accuracies.columns.index("like")] for row in accuracies.rows] == ["b", "a", "b"]
    assert [row[-1] for row in luck.rows] == ["yes", "no"]
    show_comparison(found, tmp_path / "out", Console(file=io.StringIO()))
    written = pd.read_csv(tmp_path / "out" / "comparison_tests.csv")
    pd.testing.assert_frame_equal(written, found.verdicts.pairs)


def test_one_seed_is_tested_by_images_alone_and_says_so(tmp_path):
    record(tmp_path / "a", [0.5], name="a")
    record(tmp_path / "b", [0.9], name="b")
    found = compared(tmp_path)
    assert found.verdicts.pairs.apart.tolist() == [True]
    luck = next(table for table in tables_of(found) if "apart" in table.columns)
    assert "which model is better, not which method" in luck.note


def test_equal_seeds_and_equal_final_models_tell_no_lines_apart(tmp_path):
    """As strangers found it: four points of gain in earlier rounds, no spread over the seeds, and final models that agree."""
    for seed in range(2):
        record(tmp_path / f"a{seed}", [0.5], name="a", seed=seed)
        path = record(tmp_path / f"b{seed}", [0.5], name="b", seed=seed)
        summary = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps({**summary, "ema_accuracy": 0.54}))
    pairs = compared(tmp_path).verdicts.pairs
    assert pairs.error.tolist() == pytest.approx([np.sqrt((0.04 - 0.04**2) / 200)])
    assert pairs.apart.tolist() == [True]
    for look in tmp_path.glob("*/evaluation.json"):
        found = json.loads(look.read_text())
        few = {key: found[key][:10] for key in ("images", "labels")}
        models = {
            name: {"predicted": own["predicted"][:10]} for name, own in found["models"].items()
        }
        look.write_text(json.dumps({**found, **few, "models": models}))
    assert compared(tmp_path).verdicts.pairs.apart.tolist() == [False]


DAMAGED = {
    "gone": lambda look: None,
    "older": lambda look: {key: value for key, value in look.items() if key != "images"},
    "texts for classes": lambda look: {**look, "labels": ["x"] * 100},
    "nothing for a class": lambda look: {**look, "labels": [None] * 100},
    "a huge class": lambda look: {**look, "labels": [10**30] * 100},
    "numbers for images": lambda look: {**look, "images": list(range(100))},
    "fewer images": lambda look: {**look, "images": look["images"][1:]},
    "no model": lambda look: {**look, "models": {}},
    "a list": lambda look: [1],
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_records_that_do_not_say_what_models_predict_are_tested_by_seeds_alone(tmp_path, damage):
    for seed in range(3):
        record(tmp_path / f"a{seed}", [0.5 + seed / 100], name="a", seed=seed)
        record(tmp_path / f"b{seed}", [0.9 + seed / 101], name="b", seed=seed)
    path = tmp_path / "b1" / EVALUATION
    changed = damage(json.loads(path.read_text()))
    path.unlink()
    if changed is not None:
        path.write_text(json.dumps(changed))
    found = compared(tmp_path)
    assert found.verdicts.pairs.only_line.isna().all()
    assert found.verdicts.letters == {"a": "b", "b": "a"}
    assert any(note.startswith("the test knows no luck of images: ") for note in found.notes)


@pytest.mark.parametrize("key", ["images", "labels"])
def test_other_held_out_images_are_not_tested_image_by_image(tmp_path, key):
    for name in "ab":
        path = record(tmp_path / name, [0.5], name=name)
    look = json.loads((path / EVALUATION).read_text())
    other = [0] * 100 if key == "labels" else look[key][::-1]
    (path / EVALUATION).write_text(json.dumps({**look, key: other}))
    found = compared(tmp_path)
    assert found.notes[-1].endswith("b: has other held-out images than a")
    assert found.verdicts.letters == {}


def test_lines_that_lack_a_seed_or_an_accuracy_are_not_tested(tmp_path):
    for name in (
        "a0",
        "a1",
        "b0",
        "b1",
        "c0",
        "d7",
        "e0",
        "e1",
    ):  # that d cannot be paired is said anyway
        path = record(tmp_path / name, [0.5], name=name[0], seed=int(name[1]))
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "ema_accuracy": None}))
    found = compared(tmp_path)
    assert found.verdicts.letters.keys() == {"a", "b"}
    assert [note.partition(":")[0] for note in found.notes] == ["d", "c", "e"]


def test_too_many_lines_are_not_tested(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "MOST_LINES", 2)
    for name in "abc":
        record(tmp_path / name, [0.5], name=name)
    found = compared(tmp_path)
    assert found.verdicts.letters == {}
    assert any("more than 2 lines" in note for note in found.notes)


def test_seeds_with_images_of_their_own_have_wider_intervals(tmp_path):
    """100 held-out and 400 training images: the half-width of three seeds is larger by sqrt((1/3 + 1/4) / (1/3)).

    The first line has one seed, and so cannot tell whether the seeds have images of their own; the second can.
    """
    halves = []
    for own in (False, True):
        folder = tmp_path / str(own)
        for seed in range(3):
            facts = {"num_held_out": 100} | ({"held_out_sha256": str(seed)} if own else {})
            record(folder / f"b{seed}", [0.5 + seed / 10], name="b", seed=seed, facts=facts)
        record(
            folder / "a",
            [0.5],
            name="a",
            seed=0,
            facts=facts | {"held_out_sha256": "0"} if own else facts,
        )
        line = compared(folder).lines.set_index("label").loc["b"]
        halves.append(line.ema_accuracy_ci95_high - line.ema_accuracy)
    assert halves[1] / halves[0] == pytest.approx(np.sqrt(1.75))


def test_a_record_without_the_number_of_images_is_compared_all_the_same(tmp_path):
    for seed in range(2):
        facts = {"held_out_sha256": str(seed), "num_train": 0}
        record(tmp_path / f"{seed}", [0.5], seed=seed, facts=facts)
    assert compared(tmp_path).verdicts.overlap == 0


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
