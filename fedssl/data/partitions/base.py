"""What every partition is: a law that assigns every example to a client."""

import heapq
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedssl.registry import Family, Plugin

Rows = npt.NDArray[np.int64]


class Partition(Plugin):
    """A law that says which client holds which example."""

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def assign(
        self,
        labels: Rows,
        num_classes: int,
        num_clients: int,
        *,
        law: np.random.Generator,
        deal: np.random.Generator,
    ) -> Rows:
        """Return the client of each example, int64 (N,); some clients may get none.

        Args:
            labels: True class of each example, int64 (N,).
            num_classes: Number of classes.
            num_clients: K.
            law: Draws what makes clients differ, such as their mix of classes; the same stream for training and
                held-out examples, so that a client's held-out mix is its training mix.
            deal: Draws which example goes where.
        """


PARTITIONS = Family(
    "partition", "fedssl.data.partitions", Partition, "federation.partition", default="dirichlet"
)


def deal_by_shares(
    labels: Rows, shares: npt.NDArray[np.float64], deal: np.random.Generator
) -> Rows:
    """Cut every class over the clients by given shares.

    Args:
        labels: Class of each example, int64 (N,).
        shares: Share of each class that each client gets, (num_classes, K); rows sum to 1.
        deal: Shuffles each class before it is cut.

    Returns:
        Client of each example, int64 (N,).
    """
    num_classes, num_clients = shares.shape
    owner = np.empty(len(labels), dtype=np.int64)
    by_class = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[by_class], np.arange(num_classes + 1))
    for cls in range(num_classes):
        members = deal.permutation(by_class[bounds[cls] : bounds[cls + 1]])
        cuts = np.rint(np.cumsum(shares[cls]) * len(members)).astype(np.int64)
        cuts[-1] = len(members)
        counts = np.diff(np.minimum(cuts, len(members)), prepend=0)
        owner[members] = np.repeat(np.arange(num_clients), counts)
    return owner


def fill_up(owner: Rows, num_clients: int, min_size: int) -> Rows:
    """Move single examples from the largest clients to those below a minimum size.

    Every move takes from a client above the minimum, so it ends after exactly as many moves as examples are missing.

    Args:
        owner: Client of each example, int64 (N,).
        num_clients: K, with K min_size <= N.
        min_size: Examples that every client gets at least.

    Returns:
        Client of each example, int64 (N,).
    """
    owner = owner.copy()
    sizes = np.bincount(owner, minlength=num_clients)
    needy = np.flatnonzero(sizes < min_size)
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(sizes)  # one past each client's last unmoved example in `order`
    heap = [(-size, client) for client, size in enumerate(sizes.tolist()) if size > min_size]
    heapq.heapify(heap)
    for client in np.repeat(needy, min_size - sizes[needy]):
        size, donor = heapq.heappop(heap)
        ends[donor] -= 1
        owner[order[ends[donor]]] = client
        if -size - 1 > min_size:
            heapq.heappush(heap, (size + 1, donor))
    return owner
