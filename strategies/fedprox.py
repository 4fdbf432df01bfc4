"""FedProx: federated averaging whose clients are drawn back to the global model.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127.
"""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedssl.methods.base import Learner
from fedssl.strategies.fedavg import FedAvg
from fedssl.training.correction import Correction, Parameters, squared_distance


class FedProx(FedAvg):
    """Add mu/2 ||w - w_global||^2 to every client's loss, and average as FedAvg does.

    The term is right for any optimizer. Its gradient is 0 at a round's first step, so it changes nothing for clients that
    take one step. Some published code leaves out the half: its mu is half of this one.
    """

    group: ClassVar[str] = "drift correction"

    mu: float = Field(
        0.01, ge=0, description="weight of the proximal term; 0 is federated averaging"
    )

    def correction(self) -> Correction | None:
        """Return the proximal term; None if it has no weight."""
        return ProximalTerm(self.mu) if self.mu else None


@dataclass(frozen=True)
class ProximalTerm(Correction):
    """The squared distance to the received weights.

    Args:
        mu: Weight of the term.
    """

    is_elementwise: ClassVar[bool] = True

    mu: float

    def begin(self, learner: Learner) -> None:
        """Copy the received weights before the first step."""
        _ = learner.received

    def term(self, learner: Learner, parameters: Parameters) -> Tensor | None:
        """Return mu/2 ||w - w_global||^2.

        Reference: equation 2.
        """
        return self.mu / 2 * squared_distance(parameters, learner.received)
