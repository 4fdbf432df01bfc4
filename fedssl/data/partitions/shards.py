"""The pathological split: examples are sorted by class and cut into shards, and each client gets a few shards.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
arXiv:1602.05629, section 3.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from fedssl.core.errors import InputError
from fedssl.data.images import Rows
from fedssl.data.partitions.base import Draws, Examples, Partition


class Shards(Partition):
    """Sort by class, cut into K x `shards` pieces of equal size, and deal `shards` random pieces to every client.

    The sizes of pieces differ by one at most.
    """

    by_class: ClassVar[bool] = True

    shards: int = Field(
        2, ge=1, description="number of pieces of the sorted images that each client gets"
    )

    def assign(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example; see `Partition.assign`.

        Raises:
            InputError: There are fewer examples than pieces.
        """
        num_pieces = num_clients * self.shards
        if num_pieces > len(examples):
            raise InputError(
                "federation.partition.shards",
                f"is {self.shards}, so {num_clients} clients need {num_pieces} pieces, "
                f"but there are {len(examples)} images",
                f"set it to {len(examples) // num_clients} at most",
            )
        client_of_piece = draws.law.permutation(np.arange(num_pieces) % num_clients)
        order = draws.deal.permutation(len(examples))
        order = order[np.argsort(examples.labels[order], kind="stable")]
        owner = np.empty(len(examples), dtype=np.int64)
        owner[order] = client_of_piece[np.arange(len(examples)) * num_pieces // len(examples)]
        return owner
