"""Label skew by a Dirichlet law over the clients, class by class.

Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, arXiv:1905.12022,
section 4.
"""

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl.data.partitions.base import Partition, Rows, deal_by_shares


class Dirichlet(Partition):
    """Split every class over the clients by shares drawn from Dir(alpha, ..., alpha)."""

    alpha: float = Field(
        0.5, gt=0, description="concentration: small is skewed, large approaches iid"
    )

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
        return deal_by_shares(labels, self._shares(num_classes, num_clients, law), deal)

    def _shares(
        self, num_classes: int, num_clients: int, law: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        """Return one draw for every class, (num_classes, K)."""
        draws = law.dirichlet(np.full(num_clients, self.alpha), size=num_classes)
        # A tiny alpha can underflow to a row without mass: all of that class then goes to one client.
        lost = ~np.isfinite(draws).all(axis=1) | (draws.sum(axis=1) <= 0)
        winners = law.integers(num_clients, size=num_classes)
        draws[lost] = 0
        draws[lost, winners[lost]] = 1
        shares: npt.NDArray[np.float64] = draws / draws.sum(axis=1, keepdims=True)
        return shares
