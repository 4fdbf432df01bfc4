"""Every label noise: the right number of wrong labels, none right by chance, all labels equally likely to be wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedssl.core.errors import InputError
from fedssl.data.label_noise import LABEL_NOISES

NUM_OTHERS = {"symmetric": lambda num_classes: num_classes - 1, "pair": lambda num_classes: 1}
"""Of each kind, how many classes one class is taken for."""


def noise(kind, rate):
    return LABEL_NOISES.build({"kind": kind, "rate": rate})


def corrupt(kind, rate, labels, num_classes, seed=0):
    return noise(kind, rate).corrupt(labels, num_classes, np.random.default_rng(seed))


def some_labels(size, num_classes, seed=0):
    return np.random.default_rng(seed).integers(0, num_classes, size)


def test_every_label_noise_is_tested():
    assert set(NUM_OTHERS) == set(LABEL_NOISES.names())


@pytest.mark.parametrize("kind", NUM_OTHERS)
class TestEvery:
    @given(
        size=st.integers(0, 200),
        num_classes=st.integers(2, 12),
        rate=st.floats(0, 1),
        seed=st.integers(0, 2**20),
    )
    def test_exactly_as_many_as_it_says_become_another_class(
        self, kind, size, num_classes, rate, seed
    ):
        labels = some_labels(size, num_classes, seed)
        before = labels.copy()
        noisy = corrupt(kind, rate, labels, num_classes, seed)
        assert (noisy != labels).sum() == round(rate * size)
        assert noisy.dtype == np.int64
        assert noisy.shape == (size,)
        assert ((noisy >= 0) & (noisy < num_classes)).all()
        assert np.array_equal(labels, before)
        assert np.array_equal(noisy, corrupt(kind, rate, labels, num_classes, seed))

    def test_rates_of_nothing_and_all(self, kind):
        labels = some_labels(500, 10)
        assert np.array_equal(corrupt(kind, 0, labels, 10), labels)
        assert (corrupt(kind, 1, labels, 10) != labels).all()

    def test_another_stream_is_another_noise(self, kind):
        labels = some_labels(500, 10)
        first, second = (corrupt(kind, 0.5, labels, 10, seed) for seed in (0, 1))
        assert not np.array_equal(first, second)

    def test_every_label_is_equally_likely_to_be_wrong(self, kind):
        """Over 2,000 seeds, each of 20 labels at rate 0.3: binomial, deviation 20.5; five of them."""
        labels = np.repeat(np.arange(4), 5)
        wrong = sum((corrupt(kind, 0.3, labels, 4, seed) != labels) for seed in range(2000))
        assert np.abs(wrong - 600).max() < 5 * (2000 * 0.3 * 0.7) ** 0.5

    def test_which_classes_a_class_is_taken_for(self, kind):
        """And each of them equally often, up to five deviations."""
        labels = np.repeat(np.arange(5), 8000)
        noisy = corrupt(kind, 1, labels, 5)
        others = NUM_OTHERS[kind](5)
        for cls in range(5):
            counts = np.bincount(noisy[labels == cls], minlength=5)
            assert counts[cls] == 0
            assert (counts > 0).sum() == others
            assert np.abs(counts[counts > 0] - 8000 / others).max() <= 5 * (8000 / others) ** 0.5


def test_pair_is_the_next_class_and_the_first_after_the_last():
    assert corrupt("pair", 1, np.array([0, 1, 2, 3, 3]), 4).tolist() == [1, 2, 3, 0, 0]


def test_the_rate_is_a_fifth_by_default_and_the_kind_is_not_given():
    assert LABEL_NOISES.build("pair").rate == 0.2
    with pytest.raises(InputError, match=r"federation\.label_noise\.kind: is missing"):
        LABEL_NOISES.build({})


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "0.5", True])
@pytest.mark.parametrize("kind", NUM_OTHERS)
def test_rates_that_are_refused(kind, rate):
    with pytest.raises(InputError, match=r"federation\.label_noise\.rate"):
        noise(kind, rate)
