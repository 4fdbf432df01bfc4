"""Confusion, reliability and the worst tenth of the clients, each compared with a naive loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedssl.metrics.calibration import (
    BINS,
    confusion_matrix,
    mean_accuracy_of_worst_tenth,
    measure_reliability,
)


def drawn(seed: int, images: int = 300, classes: int = 4):
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet([0.4] * classes, size=images)
    labels = generator.integers(-1, classes, size=images)
    return probs, labels


@given(st.integers(0, 1000))
def test_confusion_counts_every_known_image_once(seed):
    probs, labels = drawn(seed)
    found = confusion_matrix(labels, probs.argmax(1), 4)
    naive = np.zeros((4, 4), int)
    for label, guess in zip(labels, probs.argmax(1), strict=True):
        if label >= 0:
            naive[label, guess] += 1
    assert found.tolist() == naive.tolist()


@given(st.integers(0, 1000))
def test_reliability_is_that_of_a_naive_loop(seed):
    probs, labels = drawn(seed)
    found = measure_reliability(probs, labels)
    gap = 0.0
    for place in range(BINS):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probs, labels, strict=True)
            if label >= 0 and place / BINS < row.max() <= (place + 1) / BINS
        ]
        assert found.count[place] == len(inside)
        if not inside:
            assert np.isnan(found.accuracy[place])
            continue
        confidence, right = np.mean(inside, axis=0)
        assert found.confidence[place] == pytest.approx(confidence)
        assert found.accuracy[place] == pytest.approx(right)
        gap += len(inside) * abs(confidence - right)
    assert found.ece == pytest.approx(gap / (labels >= 0).sum())


def test_who_is_certain_and_right_has_no_error_and_who_is_certain_and_wrong_has_all():
    sure = np.eye(3)[[0, 1, 2, 0]]
    assert measure_reliability(sure, np.array([0, 1, 2, 0])).ece == 0.0
    assert measure_reliability(sure, np.array([1, 2, 0, 1])).ece == 1.0
    assert np.isnan(measure_reliability(sure, np.full(4, -1)).ece)


def test_the_worst_tenth_is_of_clients_that_have_images():
    accuracies = np.array([np.nan, *np.linspace(0.5, 1.0, 20)])
    assert mean_accuracy_of_worst_tenth(accuracies) == pytest.approx(accuracies[1:3].mean())
    assert mean_accuracy_of_worst_tenth(np.array([0.7, 0.9])) == pytest.approx(0.7)
    assert np.isnan(mean_accuracy_of_worst_tenth(np.array([np.nan])))
