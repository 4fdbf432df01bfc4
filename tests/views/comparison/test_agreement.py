"""Runs on different data or splits are not compared by accident, and the reason is named."""

import pytest

from fedssl.core.errors import InputError
from fedssl.views.comparison.agreement import disagreements
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.gather import gather
from tests.views.comparison.records import record


def said(path):
    return disagreements(gather([path]).lines)


def test_the_same_data_and_split_agree_whatever_else_differs(tmp_path):
    """Another seed has another split, and where the data has no test images of its own, other held-out ones."""
    for seed in (0, 1):
        facts = {"held_out_sha256": str(seed)}
        record(tmp_path / f"a{seed}", [0.5], name="a", seed=seed, facts=facts)
        changed = {"federation": {"sample": 2}, "method": {"kind": "supervised"}}
        record(tmp_path / f"b{seed}", [0.5], name="b", seed=seed, facts=facts, **changed)
    assert said(tmp_path) == ()


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ({"source": "mnist"}, "source is mnist and not digits"),
        ({"class_names": ["zero", "two"]}, "different class_names"),
        ({"shape": [3, 8, 8]}, "shape is [3, 8, 8] and not [1, 8, 8]"),
        ({"evaluated_on": "validation"}, "evaluated_on is validation and not test"),
        ({"num_train": 399}, "num_train is 399 and not 400"),
    ],
)
def test_other_data_is_named_even_without_a_common_seed(tmp_path, fact, words):
    record(tmp_path / "a", [0.5], name="a")
    record(tmp_path / "b", [0.5], name="b", seed=7, facts=fact)
    (sentence,) = said(tmp_path)
    assert sentence == f"b: {words} (although the settings of [data] and [federation] are equal)"


def test_the_settings_that_made_other_data_are_named(tmp_path):
    record(tmp_path / "a", [0.5], name="a")
    cut = {"data": {"train_size": 300}}
    record(tmp_path / "b", [0.5], name="b", facts={"num_train": 300}, partition="other", **cut)
    assert said(tmp_path) == (
        "b: num_train is 300 and not 400 (data.train_size is 300 and not 400)",
    )


def test_another_split_is_named_with_its_seeds_and_settings(tmp_path):
    for seed in (0, 1, 2):
        record(tmp_path / f"a{seed}", [0.5], name="a", seed=seed)
    skew = {"federation": {"partition": {"kind": "dirichlet", "alpha": 0.1}}}
    for seed in (1, 2, 3):
        record(tmp_path / f"b{seed}", [0.5], name="b", seed=seed, partition="other", **skew)
    assert said(tmp_path) == (
        "b: different split than a for seeds 1, 2 (federation.partition.alpha is 0.1 and not 0.5)",
    )


def test_another_split_under_the_same_settings_is_found(tmp_path):
    record(tmp_path / "a", [0.5], name="a")
    record(tmp_path / "b", [0.5], name="b", partition="other", facts={"held_out_sha256": "other"})
    (sentence,) = said(tmp_path)
    assert sentence == (
        "b: different held-out images and split than a for seed 0 (although the settings of [data] and [federation] are equal)"
    )


def test_lines_that_share_a_seed_with_each_other_only_are_compared_too(tmp_path):
    record(tmp_path / "a", [0.5], name="a")
    record(tmp_path / "b", [0.5], name="b", seed=1)
    record(tmp_path / "c", [0.5], name="c", seed=1, partition="other")
    (sentence,) = said(tmp_path)
    assert sentence.startswith("c: different split than b for seed 1")


def test_a_disagreement_is_refused_with_a_way_on_and_otherwise_noted(tmp_path):
    record(tmp_path / "a", [0.5], name="a")
    record(tmp_path / "b", [0.5], name="b", partition="other")
    record(tmp_path / "c", [0.5], name="c", facts={"source": "mnist"})
    with pytest.raises(
        InputError, match=r"b: different split.*; c: source is mnist.*--force"
    ) as error:
        Comparison.of_runs([tmp_path], force=False)
    noted = Comparison.of_runs([tmp_path], force=True).notes
    assert len(noted) == 2
    assert all(note in str(error.value) for note in noted)


def test_lines_that_cannot_be_paired_are_noted(tmp_path):
    record(tmp_path / "a", [0.5], name="a")
    record(tmp_path / "b", [0.5], name="b", seed=1)
    (note,) = Comparison.of_runs([tmp_path], force=False).notes
    assert note.startswith("b: no seed in common with a")
