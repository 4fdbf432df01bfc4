"""Independent and identically distributed clients."""

import numpy as np

from fedssl.data.images import Rows
from fedssl.data.partitions.base import Examples, Partition


class IID(Partition):
    """Deal shuffled examples evenly: client sizes differ by one at most."""

    def assign(
        self,
        examples: Examples,
        num_clients: int,
        *,
        law: np.random.Generator,
        deal: np.random.Generator,
    ) -> Rows:
        """Return the client of each example; see `Partition.assign`."""
        return deal.permutation(np.arange(len(examples)) % num_clients)
