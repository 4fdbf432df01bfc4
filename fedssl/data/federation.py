"""A federation as drawn: which client holds which image, and which of them carry a label."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedssl import rng
from fedssl.data.labels.base import LabelSplit
from fedssl.data.partitions.base import Partition, Rows, fill_up
from fedssl.data.shard import Shard
from fedssl.data.sources.base import Dataset, Images
from fedssl.errors import InputError


@dataclass(frozen=True)
class Federation:
    """A data set dealt to K clients.

    Args:
        data: The data set.
        owner: Client of each training image, int64 (N,).
        labeled: Whether each training image carries a label, (N,).
        held_out_owner: Client of each held-out image, for evaluation at the clients.
        num_clients: K.
    """

    data: Dataset
    owner: Rows
    labeled: npt.NDArray[np.bool_]
    held_out_owner: Rows
    num_clients: int
    _order: Rows
    _starts: Rows
    _held_out_order: Rows
    _held_out_starts: Rows

    def rows(self, client: int) -> Rows:
        """Return a client's training rows, ascending: an example's place here is its id."""
        return self._order[self._starts[client] : self._starts[client + 1]]

    def shard(self, client: int) -> Shard:
        """Return what one client holds."""
        rows = self.rows(client)
        labels = self.data.train.labels[rows]
        labeled = self.labeled[rows]
        return Shard(
            images=torch.from_numpy(self.data.train.images[rows]),
            labels=torch.from_numpy(np.where(labeled, labels, -1)),
            hidden_labels=torch.from_numpy(np.where(labeled, -1, labels)),
            spec=self.data.spec,
        )

    def held_out(self, client: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (images, labels) of the held-out examples dealt to one client by its own mix."""
        start, stop = self._held_out_starts[client], self._held_out_starts[client + 1]
        part = self.data.held_out.take(self._held_out_order[start:stop])
        return torch.from_numpy(part.images), torch.from_numpy(part.labels)

    def sizes(self) -> Rows:
        """Return the number of training images of each client, (K,)."""
        return np.diff(self._starts)

    def labeled_sizes(self) -> Rows:
        """Return the number of labeled training images of each client, (K,)."""
        return np.bincount(self.owner[self.labeled], minlength=self.num_clients)

    def class_counts(self, *, labeled: bool) -> npt.NDArray[np.int64]:
        """Count labeled or unlabeled training images by client and class, (K, num_classes)."""
        rows = self.labeled if labeled else ~self.labeled
        classes = self.data.spec.num_classes
        cells = self.owner[rows] * classes + self.data.train.labels[rows]
        counts = np.bincount(cells, minlength=self.num_clients * classes)
        return counts.reshape(self.num_clients, classes)


def draw_federation(
    data: Dataset, num_clients: int, partition: Partition, labels: LabelSplit, seed: int
) -> Federation:
    """Deal a data set to clients and choose its labels; the same answer for the same seed.

    Raises:
        InputError: More clients than training images, or more labels than there are.
    """
    if num_clients > len(data.train):
        raise InputError(
            "federation.clients",
            f"is {num_clients}, but there are {len(data.train)} training images",
            "every client needs at least one",
        )
    classes = data.spec.num_classes

    def assign(images: Images, name: str, min_size: int) -> Rows:
        owner = partition.assign(
            images.labels,
            classes,
            num_clients,
            law=rng.numpy_generator(seed, "partition/law"),
            deal=rng.numpy_generator(seed, f"partition/{name}"),
        )
        return fill_up(owner, num_clients, min_size)

    owner = assign(data.train, "train", 1)
    held_out_owner = assign(data.held_out, "held-out", 0)
    labeled = labels.draw(data.train.labels, owner, classes, rng.numpy_generator(seed, "labels"))
    order, starts = _by_client(owner, num_clients)
    held_out_order, held_out_starts = _by_client(held_out_owner, num_clients)
    return Federation(
        data, owner, labeled, held_out_owner, num_clients,
        order, starts, held_out_order, held_out_starts,
    )  # fmt: skip


def _by_client(owner: Rows, num_clients: int) -> tuple[Rows, Rows]:
    """Return rows sorted by client, and where each client's begin, (K + 1,)."""
    order = np.argsort(owner, kind="stable")
    return order, np.searchsorted(owner[order], np.arange(num_clients + 1))
