"""Two Gaussians over losses: values by hand, the best start, and scikit-learn's numbers."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from fedssl.methods import mixture as module
from fedssl.methods.mixture import (
    fit_mixture,
    judge_labels,
    posterior_of_lower,
    scale_to_unit,
    split_by_two_means,
)


def of(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def two_heaps(seed, count=200):
    """Losses of which about a third are high, unsorted."""
    generator = np.random.default_rng(seed)
    is_high = generator.random(count) < 1 / 3
    losses = np.where(
        is_high, generator.normal(0.7, 0.1, count), generator.normal(0.1, 0.04, count)
    )
    return torch.from_numpy(losses)


def test_small_losses_are_clean_and_large_ones_are_not():
    losses = of(*[0.1] * 50, *[2.0] * 50)
    both = scale_to_unit(torch.stack([losses, losses.flip(0)], 1))
    expected = of(*[1.0] * 50, *[0.0] * 50)
    assert torch.allclose(judge_labels(both[:, 0], 0.5), expected, atol=1e-6)
    assert torch.allclose(judge_labels(both[:, 1], 0.5), 1 - expected, atol=1e-6)


def test_losses_are_scaled_network_by_network():
    scaled = scale_to_unit(torch.stack([of(1, 3, 2), of(-5, 5, 0)], 1))
    assert torch.equal(scaled, torch.stack([of(0, 1, 0.5), of(0, 1, 0.5)], 1))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_losses_are_all_clean(count):
    equal = scale_to_unit(torch.full((count, 2), 0.3, dtype=torch.float64))
    assert torch.equal(equal, torch.zeros_like(equal))
    assert torch.equal(judge_labels(equal[:, 0], 0.5), torch.ones(count, dtype=torch.float64))


def test_if_no_label_would_be_clean_all_are(monkeypatch):
    doubtful = of(0.4, 0.1, 0.5)
    monkeypatch.setattr(module, "posterior_of_lower", lambda losses: doubtful)
    losses = of(0.0, 1.0, 0.2)
    assert torch.equal(judge_labels(losses, 0.5), torch.ones_like(losses))
    assert torch.equal(judge_labels(losses, 0.45), doubtful)


def test_two_labels_of_different_losses_are_one_of_each():
    assert torch.allclose(judge_labels(of(1.0, 0.0), 0.5), of(0, 1), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1))
def test_the_start_is_the_best_clustering_in_two(numbers):
    """No threshold leaves smaller squared distances to the two means."""
    values = of(*numbers)

    def squares(is_high):
        parts = (values[is_high], values[~is_high])
        return sum(float((part - part.mean()).square().sum()) for part in parts)

    best = min(squares(values >= threshold) for threshold in values.unique()[1:])
    is_high = split_by_two_means(values)
    assert 0 < int(is_high.sum()) < len(values)
    assert squares(is_high) == pytest.approx(best, abs=1e-9)


def posterior_of_scikit_learn(losses, **start):
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0, **start)
    column = losses.numpy()[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten iterations may be too few, as in the official code
        found = mixture.fit(column).predict_proba(column)[:, mixture.means_.argmin()]
    return torch.from_numpy(found)


@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_finds_the_same_posterior(seed):
    """Its own start is random; heaps that lie apart lead to the same end."""
    losses = two_heaps(seed)
    assert torch.allclose(posterior_of_scikit_learn(losses), posterior_of_lower(losses), atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 38])
def test_scikit_learn_ends_at_the_same_iteration(seed):
    """Losses in one heap with a tail need several iterations, and more than ten with seed 38; both start alike."""
    losses = torch.from_numpy(np.random.default_rng(seed).beta(0.5, 3, size=150))
    losses = losses / losses.amax()
    is_high = split_by_two_means(losses)
    parts = (losses[~is_high], losses[is_high])
    variances = [float(part.var(unbiased=False)) + 5e-4 for part in parts]
    start = {
        "weights_init": [len(part) / 150 for part in parts],
        "means_init": [[float(part.mean())] for part in parts],
        "precisions_init": [[[1 / variance]] for variance in variances],
    }
    expected = posterior_of_scikit_learn(losses, **start)
    assert torch.allclose(expected, posterior_of_lower(losses), atol=1e-9)


def test_the_mixture_finds_shares_means_and_spreads():
    mixture = fit_mixture(two_heaps(0, count=20_000))
    assert mixture.shares.tolist() == pytest.approx([2 / 3, 1 / 3], abs=0.01)
    assert mixture.means.tolist() == pytest.approx([0.1, 0.7], abs=0.005)
    added = 5e-4
    assert mixture.variances.tolist() == pytest.approx([0.04**2 + added, 0.1**2 + added], rel=0.05)


def test_the_order_of_the_losses_does_not_matter():
    losses = two_heaps(1)
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(0))
    shuffled = posterior_of_lower(losses[order])
    assert torch.allclose(shuffled, posterior_of_lower(losses)[order], atol=1e-12)
