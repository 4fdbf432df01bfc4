"""The split of a data set without its own test images equals scikit-learn's, without scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from fedssl.data.stratified import draw_test_rows


def by_sklearn(labels, share, seed):
    rows = np.arange(len(labels))
    return train_test_split(rows, test_size=share, stratify=labels, random_state=seed)[1]


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_rows_are_those_that_scikit_learn_draws(sizes, share, seed):
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)
    labels = np.random.default_rng(seed).permutation(labels)
    try:
        theirs = by_sklearn(labels, share, seed)
    except ValueError:
        with pytest.raises(ValueError, match="cannot be held out of every class"):
            draw_test_rows(labels, share, seed)
        return
    ours = draw_test_rows(labels, share, seed)
    assert sorted(ours) == sorted(theirs)
    assert len(set(ours.tolist())) == len(ours)


def test_ties_are_drawn_as_scikit_learn_draws_them():
    labels = np.repeat(np.arange(10), 7)  # equal classes: every remainder ties with every other
    splits = {seed: draw_test_rows(labels, 0.25, seed) for seed in range(50)}
    for seed, ours in splits.items():
        assert sorted(ours) == sorted(by_sklearn(labels, 0.25, seed))
    assert len({tuple(np.bincount(labels[rows])) for rows in splits.values()}) > 1
