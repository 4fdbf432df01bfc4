"""Clients whose images are independent and identically distributed."""

import numpy as np

from fedssl.data.images import Rows
from fedssl.data.partitions.base import Draws, Examples, Partition


class IID(Partition):
    """Deal shuffled examples evenly: client sizes differ by one at most."""

    def assign(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example; see `Partition.assign`."""
        return draws.deal.permutation(np.arange(len(examples)) % num_clients)
