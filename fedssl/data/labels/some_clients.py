"""A few clients with labels among many without.

Liang et al., "RSCFed: Random Sampling Consensus Federated Semi-supervised Learning", CVPR 2022, arXiv:2203.13993, with
1 labeled client of 10, fully labeled.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedssl.core.errors import InputError
from fedssl.data.images import Mask
from fedssl.data.labels.base import LabelSplit, Pool, choose


class SomeClients(LabelSplit):
    """Draw the labeled clients, and the labels among all that they hold together; by default they are all of it.

    Where labels are few, one of these clients may be left without.
    """

    default_per_class: ClassVar[int | Literal["all"]] = "all"

    labeled_clients: int = Field(1, ge=1, description="clients that hold labels")

    def draw(self, pool: Pool, generator: np.random.Generator) -> Mask:
        """Return exactly as many labeled examples of every class as are asked for; see `LabelSplit.draw`."""
        assert pool.owner is not None
        if self.labeled_clients > pool.num_clients:
            raise InputError(
                "federation.labels.labeled_clients",
                f"is {self.labeled_clients}, but there are {pool.num_clients} clients",
            )
        clients = generator.choice(pool.num_clients, size=self.labeled_clients, replace=False)
        candidates = pool.labelable & np.isin(pool.owner, clients)
        whose = f" at the {self.labeled_clients} labeled clients"
        amounts = self.amounts(pool, candidates, whose)
        if sum(amounts) < self.labeled_clients:
            raise InputError(
                "federation.labels.labeled_clients",
                f"is {self.labeled_clients}, but there are {sum(amounts)} labels",
                "a labeled client wants at least one",
            )
        return choose(pool.labels, candidates, amounts, generator)
