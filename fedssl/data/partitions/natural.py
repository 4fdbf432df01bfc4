"""Natural clients: a column of the data, such as the maker of an image, decides which images stay together.

Follows Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, arXiv:1812.01097, section 3, whose clients
are writers, speakers and users.
"""

import numpy as np
from pydantic import Field

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.data.images import Rows
from fedssl.data.partitions.base import Draws, Examples, Partition

WHERE = "federation.partition.column"


class Natural(Partition):
    """Give all examples with the same value of a column to one client.

    All clients get the same number of values, or one more.
    """

    column: str = Field(
        description="column of the data that says where an image comes from, such as its maker"
    )

    def assign(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example; see `Partition.assign`.

        Raises:
            InputError: The data has no such column, or the column has fewer values than there are clients.
        """
        values, which = np.unique(self._codes(examples), return_inverse=True)
        if len(values) < num_clients:
            problem = f"{self.column!r} has {len(values)} values for {num_clients} clients"
            raise InputError(WHERE, problem, f"federation.clients may be {len(values)} at most")
        clients: Rows = draws.law.permutation(np.arange(len(values)) % num_clients)
        return clients[which]

    def assign_held_out(
        self,
        held_out: Examples,
        train: Examples,
        owner: Rows,
        num_clients: int,
        draws: Draws,
    ) -> Rows:
        """Return the client of each held-out example: the client that has the example's value in training.

        Several clients have the same value if `fill_up` moved examples between clients; the client with most training
        examples of the value then gets the held-out example. Examples with a value that no client has are shuffled and
        dealt evenly.

        Raises:
            InputError: The data has no such column.
        """
        dealt = owner >= 0
        values, which = np.unique(self._codes(train)[dealt], return_inverse=True)
        cells, counts = np.unique(which * num_clients + owner[dealt], return_counts=True)
        cells = cells[
            np.lexsort((-counts, cells // num_clients))
        ]  # by value, the client with most examples first
        starts = np.searchsorted(cells // num_clients, np.arange(len(values)))
        clients = cells[starts] % num_clients
        codes = self._codes(held_out)
        known = np.isin(codes, values)
        held_out_owner = np.empty(len(held_out), dtype=np.int64)
        held_out_owner[known] = clients[np.searchsorted(values, codes[known])]
        num_unknown = int((~known).sum())
        held_out_owner[~known] = draws.deal.permutation(np.arange(num_unknown) % num_clients)
        return held_out_owner

    def _codes(self, examples: Examples) -> Rows:
        """Return the codes of the column, int64 (N,)."""
        if self.column not in examples.columns:
            known = examples.columns
            remedy = suggest_nearest(self.column, known) if known else "this data has no columns"
            raise InputError(WHERE, f"there is no column {self.column!r}", remedy)
        return examples.columns[self.column]
