"""Labels spread unevenly: some clients label eagerly, most hardly at all."""

import numpy as np
from pydantic import Field

from fedssl.data.images import Mask
from fedssl.data.labels.base import LabelSplit, Pool, choose
from fedssl.data.partitions.base import dirichlet_shares


class Skewed(LabelSplit):
    """Draw labels by a weight for each client from Dir(alpha, ..., alpha); the counts of classes stay exact.

    A client's weight is that of all it holds, so that a large client gets no more labels for its size.
    """

    alpha: float = Field(
        0.5, gt=0, description="concentration: small leaves the labels to a few clients"
    )

    def draw(self, pool: Pool, generator: np.random.Generator) -> Mask:
        """Return exactly as many labeled examples of every class as are asked for; see `LabelSplit.draw`."""
        assert pool.owner is not None
        amounts = self.amounts(pool, pool.labelable)
        weights = dirichlet_shares(self.alpha, pool.num_clients, 1, generator)[0]
        sizes = np.bincount(pool.owner, minlength=pool.num_clients)
        logs = np.log(np.maximum(weights, np.finfo(float).tiny)) - np.log(np.maximum(sizes, 1))
        return choose(pool.labels, pool.labelable, amounts, generator, logs[pool.owner])
