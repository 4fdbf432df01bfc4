"""Label skew by a Dirichlet law over the clients, class by class.

Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, arXiv:1905.12022,
section 4.
"""

from typing import ClassVar

from pydantic import Field

from fedssl.data.images import Rows
from fedssl.data.partitions.base import Draws, Examples, Partition, deal_by_shares, dirichlet_shares


class Dirichlet(Partition):
    """Split every class over the clients by shares drawn from Dir(alpha, ..., alpha)."""

    by_class: ClassVar[bool] = True

    alpha: float = Field(
        0.5,
        gt=0,
        description="concentration: a small value gives skewed clients, a large one nearly iid clients",
    )

    def assign(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example; see `Partition.assign`."""
        shares = dirichlet_shares(self.alpha, num_clients, examples.num_classes, draws.law)
        return deal_by_shares(examples.labels, shares, draws.deal)
