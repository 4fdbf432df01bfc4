"""Labels spread unevenly: some clients label many images, most clients label few."""

import numpy as np
from pydantic import Field

from fedssl.data.images import Mask
from fedssl.data.labels.base import LabelSplit, Pool, choose
from fedssl.data.partitions.base import dirichlet_shares


class Skewed(LabelSplit):
    """Draw labels by a weight for each client from Dir(alpha, ..., alpha); the counts of classes stay exact.

    All images of a client share the client's weight, so a large client does not get more labels for its size.
    """

    alpha: float = Field(
        0.5, gt=0, description="concentration: a small value gives most labels to a few clients"
    )

    def draw(self, pool: Pool, generator: np.random.Generator) -> Mask:
        """Return whether each example is labeled, (N,); see `LabelSplit.draw`."""
        assert pool.owner is not None
        amounts = self.amounts(pool, pool.labelable)
        weights = dirichlet_shares(self.alpha, pool.num_clients, 1, generator)[0]
        sizes = np.bincount(pool.owner, minlength=pool.num_clients)
        logs = np.log(np.maximum(weights, np.finfo(float).tiny)) - np.log(np.maximum(sizes, 1))
        return choose(pool.labels, pool.labelable, amounts, generator, logs[pool.owner])
