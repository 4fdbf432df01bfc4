"""Independent and identically distributed clients."""

import numpy as np

from fedssl.data.partitions.base import Partition, Rows


class IID(Partition):
    """Deal shuffled examples evenly: client sizes differ by one at most."""

    def assign(
        self,
        labels: Rows,
        num_classes: int,
        num_clients: int,
        *,
        law: np.random.Generator,
        deal: np.random.Generator,
    ) -> Rows:
        """Return the client of each example; see `Partition.assign`."""
        return deal.permutation(np.arange(len(labels)) % num_clients)
