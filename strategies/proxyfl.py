"""ProxyFL at the server: the global classifier is tuned on the clients' classifiers, whose rows stand for the classes.

Chen & Wang, "ProxyFL: A Proxy-Guided Framework for Federated Semi-Supervised Learning", CVPR 2026, arXiv:2602.21078.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field

from fedssl.core import rng
from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.exchange import protocol
from fedssl.exchange.census import Cohorts
from fedssl.exchange.replies import Reply
from fedssl.exchange.sums import Double, as_type, cohort_mean, weighted_mean
from fedssl.methods.base import Method
from fedssl.strategies.base import Strategy
from fedssl.strategies.by_replies import ReplyStrategy


class ProxyFL(Strategy):
    """Average the models by size, then pull each class's row of the classifier to the clients' rows of that class.

    The rows of a classifier's last layer are *proxies* of the classes. A mean of proxies lies near the outliers among
    skewed clients. So the server takes the mean as a start only, and tunes the global proxies by gradient descent: each
    comes closer to the clients' proxies of its own class than to those of other classes. The bias of the layer and all
    other weights stay averaged. Nothing more travels than under FedAvg. The server needs the reply of each client. Its
    work is epochs x clients x classes^2 x features multiplications, which is small beside a client's.

    The clients' method is a setting. ProxyFL's own is `proxyfl`; any method works that has one classifier whose head is
    a linear layer. With ``epochs = 0``, this is fedavg.

    The official code differs from the equations of the paper, and `variant` says which is followed. The default is the
    code, as in the method `proxyfl`:

    - ``"code"``: a client's proxy tells the global proxy of its class from the others. A margin is added to the distance
      within the class: the largest distance of an averaged proxy to its nearest neighbor. (The code cuts the margin at
      100, which no margin reaches.) Each epoch is a shuffled pass in batches of `batch_size`, and a step goes down the
      mean over a batch.
    - ``"paper"``, equation 2: a global proxy tells the proxy of its class from the others within each client. Each epoch
      is one step down the sum over classes and clients. It is easily led astray: one client whose proxy is far out can
      pull the proxy of its class after it, and away from the proxies of all others.

    Both have learning rate .005 and 100 epochs, 10 for CIFAR-100, without momentum and weight decay.

    Deviations: the official client weights count each labeled image 2,000 times. Here a client counts by its number of
    images. Tuning is in double precision.
    """

    group: ClassVar[str] = "reweighting"

    epochs: int = Field(
        100, ge=0, description="Q, tuning epochs after each round; 10 for CIFAR-100 in the paper"
    )
    lr: float = Field(0.005, gt=0, description="learning rate of tuning")
    variant: Literal["code", "paper"] = Field(
        "code",
        description="whether the loss of tuning is the official code's or the paper's equation",
    )
    batch_size: int = Field(
        4, ge=1, description="client proxies in a tuning step; used by variant = 'code' only"
    )

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the strategy that runs a phase."""
        return _ProxyFL(self, cohorts)

    def check(self, method: Method, arrays: NamedArrays) -> None:
        """Refuse a network that has no proxies to tune.

        Raises:
            InputError: The network has no classifier with a linear layer, or several.
        """
        proxies_in(arrays)


class _ProxyFL(ReplyStrategy):
    def __init__(self, settings: ProxyFL, cohorts: Cohorts) -> None:
        super().__init__(cohorts)
        self._settings = settings
        self._numbers: dict[str, float] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the requests of a round; a round in which no reply counts measures nothing."""
        self._numbers = {}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate(
        self,
        server_round: int,
        arrays: NamedArrays,
        replies: Mapping[int, Reply],
        buffers: Collection[str],
    ) -> NamedArrays:
        """Return the mean by size with tuned proxies; clients without images do not count."""
        counted = [reply for reply in replies.values() if reply.metrics[protocol.NUM_EXAMPLES] > 0]
        if not counted:
            return arrays
        models = [reply.arrays[protocol.ARRAYS] for reply in counted]
        mean = weighted_mean(models, [reply.metrics[protocol.NUM_EXAMPLES] for reply in counted])
        name = proxies_in(arrays)
        clients = np.stack([model[name] for model in models]).astype(np.float64)
        stream = rng.make_numpy_generator(self.cohorts.seed, "proxies", round=server_round)
        tuned = tune(mean[name], clients, self._settings, stream)
        self._numbers = {
            "proxy_shift": float(np.linalg.norm(tuned - mean[name])),
            "own_class_nearest": own_class_nearest(clients, tuned),
        }
        aggregate = cohort_mean(mean, 1.0, arrays)
        return {**aggregate, name: as_type(tuned, arrays[name])}

    def numbers(self) -> Mapping[str, float]:
        """Return how far tuning moved the proxies, and how many clients' proxies the tuned proxies tell apart."""
        return self._numbers


def proxies_in(arrays: NamedArrays) -> str:
    """Return the name of the array whose rows are the proxies: the weight of the classifier's head.

    A `Classifier` has a trunk and a head, wherever it is in a network, so the names of its arrays tell which is the head's.

    Args:
        arrays: The global arrays.

    Raises:
        InputError: There is no such array, or several.
    """
    found = [name for name, array in arrays.items() if _is_head(name) and array.ndim == 2]
    if len(found) == 1:
        return found[0]
    raise InputError(
        "strategy.kind",
        f"is 'proxyfl', which tunes the linear layer of one classifier, and the network has {len(found)} of them",
        "take another strategy, a method with one classifier, or a model that ends in a linear layer",
    )


def _is_head(name: str) -> bool:
    """Return whether a name is that of a head's weight, or of a part of it, and not of something inside a trunk."""
    # In FedMatch's network, the second half of each weight has colons in its name.
    parts = name.replace(":", ".").split(".")
    return parts[-2:] == ["head", "weight"] and "trunk" not in parts


def tune(
    average: Double, clients: Double, settings: ProxyFL, generator: np.random.Generator
) -> Double:
    """Return the tuned global proxies, shape (C, d).

    Args:
        average: The mean of the clients' proxies, (C, d).
        clients: The proxies of each client, (M, C, d).
        settings: Epochs, learning rate and variant.
        generator: Source of the order of the proxies.

    Reference: equation 2; `update_GPT` of the official code.
    """
    num_clients, num_classes, width = clients.shape
    tuned = average.copy()
    if settings.variant == "paper":
        for _ in range(settings.epochs):
            tuned -= settings.lr * slope_by_client(clients, tuned)
        return tuned
    rows = clients.reshape(-1, width)
    classes = np.tile(np.arange(num_classes), num_clients)
    margin = widest_gap(average)
    for _ in range(settings.epochs):
        order = generator.permutation(len(rows))
        for start in range(0, len(rows), settings.batch_size):
            batch = order[start : start + settings.batch_size]
            tuned -= settings.lr * slope_by_proxy(rows[batch], classes[batch], tuned, margin)
    return tuned


def slope_by_client(clients: Double, tuned: Double) -> Double:
    """Return the gradient for `tuned` of sum_m sum_c -log softmax_c'(-||Omega_c - omega_m,c'||) at c' = c, (C, d).

    Args:
        clients: omega, the proxies of each client, (M, C, d).
        tuned: Omega, the global proxies, (C, d).

    Reference: equation 2.
    """
    distances, directions = _apart(tuned[:, None], clients[:, None])  # (M, C, C'), (M, C, C', d)
    slopes = np.eye(len(tuned)) - _softmax(-distances)
    return np.asarray((slopes[..., None] * directions).sum((0, 2)))


def slope_by_proxy(
    rows: Double, classes: npt.NDArray[np.int_], tuned: Double, margin: float
) -> Double:
    """Return the gradient for `tuned` of mean_i -log softmax_c(-||omega_i - Omega_c|| - margin [c = y_i]) at c = y_i.

    Args:
        rows: omega_i, clients' proxies, (B, d).
        classes: y_i, their classes, int64 (B,).
        tuned: Omega, the global proxies, (C, d).
        margin: Added to the distance within a class.
    """
    distances, directions = _apart(tuned, rows[:, None])  # (B, C), (B, C, d)
    own = np.eye(len(tuned))[classes]
    slopes = own - _softmax(-distances - margin * own)
    return np.asarray((slopes[..., None] * directions).mean(0))


def _apart(first: Double, second: Double) -> tuple[Double, Double]:
    """Return the distances of vectors, and their gradients for the first vectors: unit vectors, 0 where both are equal."""
    difference = first - second
    distances = np.sqrt(np.square(difference).sum(-1))
    nonzero = np.where(distances > 0, distances, 1.0)
    return distances, difference / nonzero[..., None]


def _softmax(logits: Double) -> Double:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def widest_gap(proxies: Double) -> float:
    """Return the largest distance of a proxy to its nearest neighbor, the margin of the official code; 0 if it has none.

    Args:
        proxies: Shape (C, d).
    """
    distances, _ = _apart(proxies[:, None], proxies)
    np.fill_diagonal(distances, math.inf)
    widest = float(distances.min(1).max())
    return widest if math.isfinite(widest) else 0.0


def own_class_nearest(clients: Double, tuned: Double) -> float:
    """Return the share of the clients' proxies whose nearest global proxy is that of their own class.

    Args:
        clients: Shape (M, C, d).
        tuned: Shape (C, d).
    """
    distances, _ = _apart(clients[:, :, None], tuned)  # (M, C, C')
    return float((distances.argmin(-1) == np.arange(len(tuned))).mean())
