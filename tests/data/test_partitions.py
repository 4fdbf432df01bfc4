"""Every partition: disjoint, complete, reproducible, nobody empty; no endless loop at any K or alpha."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.data.partitions.base import PARTITIONS, deal_by_shares, fill_up
from fedssl.data.partitions.dirichlet import Dirichlet
from fedssl.data.partitions.iid import IID

EVERY = [PARTITIONS.build(name) for name in PARTITIONS.names()]


def assign(partition, labels, clients, seed=0, min_size=1):
    owner = partition.assign(
        labels,
        10,
        clients,
        law=np.random.default_rng(seed),
        deal=np.random.default_rng(seed + 1),
    )
    return fill_up(owner, clients, min_size)


def some_labels(size, seed=0):
    return np.random.default_rng(seed).integers(0, 10, size)


@pytest.mark.parametrize("partition", EVERY, ids=lambda p: p.kind)
@given(size=st.integers(1, 400), share=st.floats(0, 1), seed=st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_partitions_are_complete_and_nobody_is_empty(partition, size, share, seed):
    clients = max(1, round(share * size))
    labels = some_labels(size, seed)
    owner = assign(partition, labels, clients, seed)
    assert owner.shape == (size,)  # every example has one owner: disjoint and complete
    assert owner.min() >= 0
    assert owner.max() < clients
    assert np.bincount(owner, minlength=clients).min() >= 1
    assert np.array_equal(owner, assign(partition, labels, clients, seed))


@pytest.mark.parametrize("alpha", [1e-9, 0.001, 0.1, 1, 1e6])
@pytest.mark.parametrize("clients", [1, 3, 1000, 5000])
def test_extreme_dirichlet(alpha, clients):
    labels = some_labels(5000)
    owner = assign(Dirichlet(alpha=alpha), labels, clients)
    assert np.bincount(owner, minlength=clients).min() >= 1


def test_alpha_means_what_it_says():
    labels = some_labels(20_000)

    def skew(alpha):
        owner = assign(Dirichlet(alpha=alpha), labels, 10)
        counts = np.zeros((10, 10))
        np.add.at(counts, (owner, labels), 1)
        mixes = counts / counts.sum(1, keepdims=True)
        return np.abs(mixes - counts.sum(0) / counts.sum()).sum(1).mean() / 2

    skews = [skew(alpha) for alpha in (0.05, 0.5, 5, 1000)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.5
    assert skews[-1] < 0.05


def test_dirichlet_shares_follow_the_law():
    """E[share] = 1/K and Var[share] = (K-1)/(K^2 (K alpha + 1)), over 4,000 draws."""
    shares = Dirichlet(alpha=0.5)._shares(4000, 10, np.random.default_rng(0))
    assert np.allclose(shares.sum(1), 1)
    assert abs(shares.mean() - 0.1) < 1e-9
    assert abs(shares.var() / (9 / (100 * 6)) - 1) < 0.05


def test_iid_sizes_differ_by_one_at_most():
    sizes = np.bincount(assign(IID(), some_labels(1437), 100), minlength=100)
    assert set(sizes) == {14, 15}


def test_held_out_examples_follow_the_same_law():
    partition = Dirichlet(alpha=0.1)
    shares = [
        np.bincount(
            partition.assign(
                np.zeros(5000, np.int64), 10, 8,
                law=np.random.default_rng(4), deal=np.random.default_rng(deal),
            ),
            minlength=8,
        )
        for deal in (1, 2)
    ]  # fmt: skip
    assert np.array_equal(*shares)


def test_shares_are_cut_exactly():
    labels = np.repeat([0, 1], [10, 20])
    shares = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    owner = deal_by_shares(labels, shares, np.random.default_rng(0))
    assert np.bincount(owner[labels == 0], minlength=3).tolist() == [5, 3, 2]
    assert np.bincount(owner[labels == 1], minlength=3).tolist() == [0, 0, 20]


@given(st.lists(st.integers(0, 6), min_size=7, max_size=200), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_filling_up_moves_no_more_than_is_missing(owners, min_size):
    owner = np.array(owners)
    if 7 * min_size > len(owner):
        return
    before = np.bincount(owner, minlength=7)
    filled = fill_up(owner, 7, min_size)
    after = np.bincount(filled, minlength=7)
    assert after.min() >= min_size
    assert (filled != owner).sum() == np.maximum(0, min_size - before).sum()


def test_a_hundred_thousand_clients_take_seconds():
    labels = some_labels(1_000_000)
    owner = assign(Dirichlet(alpha=0.1), labels, 100_000)
    assert np.bincount(owner, minlength=100_000).min() >= 1
