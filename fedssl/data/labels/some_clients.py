"""A few clients with labels among many clients without labels.

Liang et al., "RSCFed: Random Sampling Consensus Federated Semi-supervised Learning", CVPR 2022, arXiv:2203.13993,
has 1 fully labeled client of 10.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedssl.core.errors import InputError
from fedssl.data.images import Mask
from fedssl.data.labels.base import LabelSplit, Pool, choose


class SomeClients(LabelSplit):
    """Draw the labeled clients, then draw the labels among the images that these clients hold together.

    By default all images of these clients are labeled. If labels are few, one of these clients may get none.
    """

    default_per_class: ClassVar[int | Literal["all"]] = "all"

    labeled_clients: int = Field(1, ge=1, description="number of clients that hold labels")

    def draw(self, pool: Pool, generator: np.random.Generator) -> Mask:
        """Return whether each example is labeled, (N,); see `LabelSplit.draw`.

        Raises:
            InputError: There are fewer clients, or fewer labels, than labeled clients; or more labels are asked for
                than the labeled clients have images.
        """
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
                "ask for at least one label for each labeled client",
            )
        return choose(pool.labels, candidates, amounts, generator)
