"""Quantity skew: clients differ in size, and have the same mix of classes.

Log-normal sizes follow Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, arXiv:2111.04263,
appendix A; power laws follow Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv:1812.06127, section 5.1.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl.data.images import Rows
from fedssl.data.partitions.base import Draws, Examples, Partition, deal_by_sizes


class Quantity(Partition):
    """Deal shuffled examples so that client sizes follow a log-normal or a power law."""

    sizes: Literal["lognormal", "power"] = Field(
        "lognormal",
        description="law of client sizes; lognormal: log(size) is normal; "
        "power: the size of the r-th largest client is proportional to r^-exponent",
    )
    sigma: float = Field(1.0, gt=0, description="lognormal: standard deviation of log(size)")
    exponent: float = Field(1.0, gt=0, description="power: how fast sizes fall; 1 is Zipf's law")

    def assign(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example; see `Partition.assign`."""
        return deal_by_sizes(len(examples), self.shares(num_clients, draws.law), draws.deal)

    def shares(self, num_clients: int, law: np.random.Generator) -> npt.NDArray[np.float64]:
        """Return the share of all examples that each client gets, (K,); they sum to 1."""
        if self.sizes == "lognormal":
            steepness, falls = self.sigma, law.standard_normal(num_clients)
        else:
            steepness, falls = self.exponent, -np.log(1 + law.permutation(num_clients))
        # Sizes are relative to the largest one, so none overflows. A product that overflows gives a size of zero.
        with np.errstate(over="ignore"):
            relative = np.exp(steepness * (falls - falls.max()))
        shares: npt.NDArray[np.float64] = relative / relative.sum()
        return shares
