"""A few labels of every class, wherever the partition put the images."""

import numpy as np

from fedssl.data.images import Mask
from fedssl.data.labels.base import LabelSplit, Pool, choose


class AtClients(LabelSplit):
    """Draw the labeled examples once over the whole federation; the partition spreads them."""

    def draw(self, pool: Pool, generator: np.random.Generator) -> Mask:
        """Return exactly as many labeled examples of every class as are asked for; see `LabelSplit.draw`."""
        amounts = self.amounts(pool, pool.labelable)
        return choose(pool.labels, pool.labelable, amounts, generator)
