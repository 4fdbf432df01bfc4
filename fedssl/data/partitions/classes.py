"""Label skew by number: every client holds images of the same number of classes.

Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, arXiv:2102.02079,
section IV-A, "#C = k". In the paper, every client draws its classes independently, so any number of clients may hold a
class, even none. Here, all classes have equally many holders, plus or minus one, and no class is lost.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from fedssl.core.errors import InputError
from fedssl.data.images import Rows, name_of_class
from fedssl.data.partitions.base import Draws, Examples, Partition

WHERE = "federation.partition.classes"


class Classes(Partition):
    """Give every client exactly `classes` classes, and cut each class evenly over the clients that hold it."""

    by_class: ClassVar[bool] = True

    classes: int = Field(2, ge=1, description="number of classes that each client holds images of")

    def assign(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example; see `Partition.assign`.

        Raises:
            InputError: `classes` is larger than the number of classes in the data; or it is too small for the clients
                to hold all classes; or a class has fewer images than clients that are to hold it.
        """
        present, counts = np.unique(examples.labels, return_counts=True)
        if self.classes > len(present):
            problem = f"is {self.classes}, but there are images of {len(present)} classes"
            raise InputError(WHERE, problem)
        if num_clients * self.classes < len(present):
            problem = (
                f"is {self.classes}: {num_clients} clients cannot hold all {len(present)} classes"
            )
            least = -(-len(present) // num_clients)
            raise InputError(WHERE, problem, f"set it to {least} or more, or use more clients")
        most_holders = -(-num_clients * self.classes // len(present))
        if counts.min() < most_holders:
            smallest = name_of_class(int(present[counts.argmin()]), examples.class_names)
            problem = (
                f"is {self.classes}: up to {most_holders} clients are to hold each class, "
                f"but class {smallest} has {counts.min()} images"
            )
            raise InputError(WHERE, problem, "use fewer clients, or fewer classes for each")
        held = _balanced_draws(len(present), self.classes, num_clients, draws.law)
        clients_by_class = np.argsort(held, axis=None, kind="stable") // self.classes
        ends = np.cumsum(np.bincount(held.ravel(), minlength=len(present)))
        owner = np.empty(len(examples), dtype=np.int64)
        for cls, holders in zip(present, np.split(clients_by_class, ends[:-1]), strict=True):
            members = np.flatnonzero(examples.labels == cls)
            # If the images cannot be divided evenly, the first holders get one more: a draw decides who is first.
            holders = draws.law.permutation(holders)
            owner[draws.deal.permutation(members)] = holders[np.arange(len(members)) % len(holders)]
        return owner


def _balanced_draws(
    num_items: int, size: int, num_draws: int, generator: np.random.Generator
) -> Rows:
    """Draw sets of distinct items so that all items are drawn equally often, plus or minus one.

    Each set takes the items that earlier sets took least often; ties are broken at random. After
    num_items / gcd(num_items, size) sets, every item has been taken equally often. A block of this many sets does not
    depend on the blocks before it, so all blocks are drawn side by side.

    Returns:
        Items of each set, int64 (num_draws, size).
    """
    block = num_items // np.gcd(num_items, size)
    num_blocks = -(-num_draws // block)
    times_drawn = np.zeros((num_blocks, num_items))
    sets = np.empty((num_blocks, block, size), dtype=np.int64)
    for place in range(block):
        keys = times_drawn + generator.random(times_drawn.shape)
        sets[:, place] = np.argpartition(keys, size - 1, axis=1)[:, :size]
        np.put_along_axis(
            times_drawn,
            sets[:, place],
            np.take_along_axis(times_drawn, sets[:, place], axis=1) + 1,
            axis=1,
        )
    return generator.permutation(sets.reshape(-1, size)[:num_draws])
