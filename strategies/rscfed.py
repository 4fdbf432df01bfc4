"""RSCFed: a consensus of random sub-cohorts, in which a client counts the less the farther its model is from the mean.

Liang et al., "RSCFed: Random Sampling Consensus Federated Semi-supervised Learning", CVPR 2022, arXiv:2203.13993.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field

from fedssl.core.arrays import NamedArrays
from fedssl.exchange import protocol
from fedssl.exchange.buffers import without_buffers
from fedssl.exchange.census import Cohorts
from fedssl.exchange.replies import Reply
from fedssl.exchange.sums import Double, Sums, cohort_mean, weighted_mean
from fedssl.strategies.base import Strategy
from fedssl.strategies.by_replies import ReplyStrategy


class RSCFed(Strategy):
    """Average models within random sub-cohorts, by size and by closeness to the mean; then average the sub-cohorts.

    Every round draws M sub-cohorts of ``federation.sample`` clients. They are independent, so a client may be in several
    of them. It then trains once for each, always from the global model, and its teacher and momentum go on.

    The clients' method is a setting, not a part of this strategy, and all clients have the same one. They differ by their
    data only (``federation.labels.kind = "some_clients"``). The paper's clients without labels are Mean Teachers with two
    weak views, sharpened targets, and a teacher and a momentum that stay with the client; its labeled client trains on
    labels alone, and did so for a while before the first round. experiments/one_labeled_client/rscfed.toml has these
    Mean Teachers at all clients, and says what differs.

    Deviations: the paper has one beta, and the norm of all weights together. The official code has two, sums the norms of
    single tensors, and multiplies the weight of labeled clients. This strategy follows the code in all three. But the code
    measures the distances of statistics and step counts, too. Where there are any, they outweigh all parameters. Here
    distances are between parameters only.
    """

    group: ClassVar[str] = "reweighting"
    repeats_clients: ClassVar[bool] = True

    sub_cohorts: int = Field(
        3, ge=1, description="M, number of sub-cohorts of federation.sample clients in a round"
    )
    distance_weight: float = Field(
        1e4,
        ge=0,
        description="beta, in images, in a sub-cohort without labels: a client of n images whose model is d away from the "
        "mean counts exp(-beta d / n); the authors' clients hold about 6,000 images, so smaller clients need a smaller beta",
    )
    labeled_distance_weight: float = Field(
        100.0,
        ge=0,
        description="beta in a sub-cohort with a labeled client; smaller, because a labeled client is far from the mean of "
        "unlabeled clients, and should count all the same",
    )
    labeled_boost: float = Field(
        6.0,
        gt=0,
        description="factor of a labeled client's weight after the distance; 6 is the authors' command for SVHN, 1 is "
        "the paper's equation",
    )

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the strategy that runs a phase."""
        return _RSCFed(self, cohorts)


class Consensus(NamedTuple):
    """The consensus of a sub-cohort.

    Args:
        model: The weighted mean of its models, in double precision.
        weights: Weight of each client in the mean, (m,); their sum is 1.
        distances: Distance of each client's parameters to the mean by size, (m,).
        is_labeled: Whether each client holds labels, (m,).
    """

    model: Sums
    weights: Double
    distances: Double
    is_labeled: npt.NDArray[np.bool_]


class _RSCFed(ReplyStrategy):
    def __init__(self, settings: RSCFed, cohorts: Cohorts) -> None:
        super().__init__(cohorts)
        self._settings = settings
        self._size = 0
        self._numbers: dict[str, float] = {}

    def select(self, server_round: int) -> list[int]:
        """Return the clients of the sub-cohorts, one sub-cohort after the other; all have the same size."""
        purposes = [f"sub-cohort/{number}" for number in range(self._settings.sub_cohorts)]
        drawn = [self.cohorts.draw(server_round, purpose) for purpose in purposes]
        self._size, self._numbers = len(drawn[0]), {}
        return [client for clients in drawn for client in clients]

    def aggregate(
        self,
        server_round: int,
        arrays: NamedArrays,
        replies: Mapping[int, Reply],
        buffers: Collection[str],
    ) -> NamedArrays:
        """Return the plain mean of the sub-cohorts' consensus models; a sub-cohort without a reply does not count.

        Reference: equation 7.
        """
        members: dict[int, list[Reply]] = defaultdict(list)
        for place, reply in replies.items():
            if reply.metrics[protocol.NUM_EXAMPLES]:
                members[place // self._size].append(reply)
        if not members:
            return arrays
        found = [consensus(own, self._settings, buffers) for own in members.values()]
        self._numbers = _measure(found)
        mean = weighted_mean([each.model for each in found], [1.0] * len(found))
        return cohort_mean(mean, 1.0, arrays)

    def numbers(self) -> Mapping[str, float]:
        """Return what the last round measured; nothing if no reply counted."""
        return self._numbers


def consensus(
    replies: Sequence[Reply], settings: RSCFed, buffers: Collection[str] = ()
) -> Consensus:
    """Return the consensus of a sub-cohort.

    Args:
        replies: The sub-cohort's replies; at least one, each from a client that holds images.
        settings: The strategy's settings.
        buffers: Names of the arrays that are not parameters. They are averaged as parameters are, and not measured.

    Reference: equations 5 and 6; lines 280-323 of the official train_main.py for labeled clients.
    """
    models = [reply.arrays[protocol.ARRAYS] for reply in replies]
    sizes = np.array([reply.metrics[protocol.NUM_EXAMPLES] for reply in replies])
    is_labeled = np.array([reply.metrics[protocol.NUM_LABELED] > 0 for reply in replies])
    mean = weighted_mean(models, sizes)
    distances = distances_to(mean, [without_buffers(model, buffers) for model in models])
    beta = settings.labeled_distance_weight if is_labeled.any() else settings.distance_weight
    weights = weigh_by_closeness(sizes, distances, beta)
    weights *= np.where(is_labeled, settings.labeled_boost, 1.0)
    weights /= weights.sum()
    return Consensus(weighted_mean(models, weights), weights, distances, is_labeled)


def distances_to(mean: Sums, models: Sequence[NamedArrays]) -> Double:
    """Return the sum of the L2 norms of theta_i - mean over floating-point tensors, for each model, (m,).

    Args:
        mean: The arrays from which distances are measured, by name.
        models: The parameters of each model; integer arrays, which count, are ignored.
    """
    return np.array([_distance(mean, model) for model in models])


def _distance(mean: Sums, model: NamedArrays) -> float:
    # The sum is exact, so the order of the tensors does not matter.
    return math.fsum(
        math.sqrt(np.square(np.subtract(array, mean[name], dtype=np.float64)).reshape(-1).sum())
        for name, array in model.items()
        if np.issubdtype(array.dtype, np.floating)
    )


def weigh_by_closeness(sizes: Double, distances: Double, beta: float) -> Double:
    """Return n_i exp(-beta d_i / n_i), up to a common factor, (m,).

    The factor makes the largest exponential 1. So models that are far from the mean may fade to 0, but never all models.

    Args:
        sizes: n_i, number of images of each client, (m,); above 0.
        distances: d_i, (m,).
        beta: Weight of the distance, in images.

    Reference: equation 6.
    """
    relative = distances / sizes
    weights: Double = sizes * np.exp(-beta * (relative - relative.min()))
    return weights


def _measure(found: Sequence[Consensus]) -> dict[str, float]:
    """Return the mean and the largest distance, and two means over sub-cohorts.

    ``effective_clients`` is 1 / sum_i w_i^2: m for equal weights, 1 if one client has all the weight. ``labeled_weight`` is
    the weight of the labeled clients together.
    """
    distances = np.concatenate([each.distances for each in found])
    effective = [1 / np.square(each.weights).sum() for each in found]
    labeled = [each.weights[each.is_labeled].sum() for each in found]
    return {
        "distance_mean": float(distances.mean()),
        "distance_max": float(distances.max()),
        "effective_clients": float(np.mean(effective)),
        "labeled_weight": float(np.mean(labeled)),
    }
