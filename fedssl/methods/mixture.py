"""Tell small losses from large ones: a mixture of two Gaussians in one dimension.

The mixture of Li et al. (DivideMix, section 3.1), with the settings of the official code, which calls scikit-learn's
``GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4)``. It is fitted here instead, because scikit-learn takes two
seconds and 138 MiB to import in every process, and because its starting point is random. In one dimension, the best
starting point (two means) can be found exactly. Everything is in double precision and draws no random number.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_ITERATIONS = 10
"""Most iterations of expectation-maximization."""

TOLERANCE = 1e-2
"""Expectation-maximization ends when the mean log-likelihood (nats) changes by less than this."""

LEAST_VARIANCE = 5e-4
"""Added to each Gaussian's variance, so that a Gaussian of equal values has a density."""


def scale_to_unit(losses: Tensor) -> Tensor:
    """Scale the losses of each network (n, 2) linearly, so that the lowest is 0 and the highest is 1; 0 if all are equal."""
    low, high = losses.amin(0), losses.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    return (losses - low) / width


def judge_labels(losses: Tensor, threshold: float) -> Tensor:
    """Return the probability that each label is clean, shape (n,): that its loss is from the Gaussian of lower mean.

    It is 1 for every label if all losses are equal, or if no label would be judged clean.

    Args:
        losses: Losses of the labels in [0, 1], float64, shape (n,).
        threshold: A label is judged clean if its probability is above this.

    Reference: section 3.1.
    """
    everything = torch.ones_like(losses)
    if losses.amin() == losses.amax():
        return everything
    probs = posterior_of_lower(losses)
    return probs if bool((probs > threshold).any()) else everything


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians in one dimension.

    Args:
        shares: Weight of each Gaussian, shape (2,), sums to 1.
        means: Mean of each Gaussian, shape (2,).
        variances: Variance of each Gaussian, shape (2,).
    """

    shares: Tensor
    means: Tensor
    variances: Tensor

    def log_joint(self, values: Tensor) -> Tensor:
        """Return log(share_k N(x | mean_k, variance_k)) of values (n,), shape (n, 2)."""
        squares = (values.unsqueeze(1) - self.means).square() / self.variances
        return self.shares.log() - 0.5 * (squares + self.variances.log() + math.log(2 * math.pi))


def posterior_of_lower(values: Tensor) -> Tensor:
    """Return the probability of each value to come from the Gaussian with the lower mean, shape (n,).

    Args:
        values: At least two different numbers, float64, shape (n,).
    """
    mixture = fit_mixture(values)
    return mixture.log_joint(values).softmax(1)[:, int(mixture.means.argmin())]


def fit_mixture(values: Tensor) -> Mixture:
    """Fit two Gaussians by expectation-maximization; arguments as in `posterior_of_lower`."""
    is_high = split_by_two_means(values)
    mixture = _maximize(values, torch.stack([~is_high, is_high], 1).to(values.dtype))
    before = -math.inf
    for _ in range(NUM_ITERATIONS):
        joint = mixture.log_joint(values)
        mixture = _maximize(values, joint.softmax(1))
        now = float(joint.logsumexp(1).mean())
        if abs(now - before) < TOLERANCE:
            break
        before = now
    return mixture


def split_by_two_means(values: Tensor) -> Tensor:
    """Return which values belong to the higher of two clusters, bool (n,): the best two-means clustering.

    In one dimension, a threshold divides the clusters, so every threshold is tried. The best one has the largest sum of
    squares between the clusters.
    """
    ordered = values.sort().values
    num_low = torch.arange(1, len(values), dtype=values.dtype)
    low, total = ordered.cumsum(0)[:-1], ordered.sum()
    between = low.square() / num_low + (total - low).square() / (len(values) - num_low)
    return values >= ordered[1 + int(between.argmax())]


def _maximize(values: Tensor, shares: Tensor) -> Mixture:
    """Return the mixture of highest likelihood, given the share of each value in each Gaussian, (n, 2)."""
    counts = shares.sum(0) + 10 * torch.finfo(shares.dtype).eps
    means = (shares * values.unsqueeze(1)).sum(0) / counts
    squares = (values.unsqueeze(1) - means).square()
    variances = (shares * squares).sum(0) / counts + LEAST_VARIANCE
    return Mixture(counts / counts.sum(), means, variances)
