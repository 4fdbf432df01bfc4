"""Measures that give classes the same weight are scikit-learn's, and where it has none, they are as documented."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from fedssl.metrics.balanced import measure_balanced


def drawn(seed: int, classes: int, *, ties: bool = False):
    """Return probabilities and labels with unknown ones among them; every class has images."""
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet([0.4] * classes, size=120)
    if ties:
        probs = generator.integers(1, 4, size=(120, classes)).astype(float)
        probs /= probs.sum(1, keepdims=True)
    labels = generator.integers(-1, classes, size=120)
    labels[:classes] = np.arange(classes)
    return probs, labels


@given(st.integers(0, 1000), st.integers(2, 6), st.booleans())
def test_all_measures_are_those_of_scikit_learn(seed, classes, ties):
    probs, labels = drawn(seed, classes, ties=ties)
    found = measure_balanced(probs, labels)
    known = labels >= 0
    truth, scores, guess = labels[known], probs[known], probs[known].argmax(1)
    assert found.images.tolist() == np.bincount(truth).tolist()
    assert found.macro_f1 == pytest.approx(f1_score(truth, guess, average="macro"))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, guess))
    assert found.f1 == pytest.approx(f1_score(truth, guess, average=None))
    assert found.recall == pytest.approx(recall_score(truth, guess, average=None))
    naive = precision_score(truth, guess, average=None, zero_division=np.nan)
    assert found.precision == pytest.approx(naive, nan_ok=True)
    if classes == 2:
        expected = roc_auc_score(truth, scores[:, 1])
    else:
        expected = roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    assert found.macro_auroc == pytest.approx(expected)


def test_a_class_without_images_counts_for_f1_only_if_an_image_was_taken_for_it():
    """Class 2 has no images; once it is never named, once it is named for the last image."""
    labels = np.array([0, 0, 1, 1])
    never = np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])
    found = measure_balanced(never, labels)
    assert np.isnan([found.f1[2], found.recall[2], found.precision[2], found.auroc[2]]).all()
    assert found.macro_f1 == pytest.approx(np.mean([0.8, 2 / 3]))
    assert found.macro_f1 == pytest.approx(f1_score(labels, never.argmax(1), average="macro"))
    assert found.macro_auroc == 1.0  # the mean over classes 0 and 1
    once = never.copy()
    once[3] = 0.1, 0.3, 0.6
    found = measure_balanced(once, labels)
    assert found.f1[2] == 0.0
    assert found.macro_f1 == pytest.approx(f1_score(labels, once.argmax(1), average="macro"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of the class without images
        expected = balanced_accuracy_score(labels, once.argmax(1))
    assert found.balanced_accuracy == pytest.approx(expected)


def test_a_tie_counts_as_half_and_one_class_alone_has_no_auroc():
    same = np.full((4, 2), 0.5)
    assert measure_balanced(same, np.array([0, 1, 1, 0])).macro_auroc == 0.5
    alone = measure_balanced(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    assert np.isnan(alone.macro_auroc)
    assert alone.balanced_accuracy == 0.5


def test_without_images_and_with_a_diverged_model_nothing_is_invented():
    empty = measure_balanced(np.empty((0, 3)), np.empty(0, np.int64))
    assert np.isnan(list(empty.by_name.values())).all()
    diverged = measure_balanced(np.full((4, 2), np.nan), np.array([0, 1, 1, 0]))
    assert np.isnan(diverged.macro_auroc)
    assert diverged.balanced_accuracy == 0.5  # the first class is named for every image
