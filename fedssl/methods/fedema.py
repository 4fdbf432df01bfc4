"""FedEMA.

Zhuang, Wen & Zhang, "Divergence-aware Federated Self-Supervised Learning", ICLR 2022, arXiv:2204.04385.
"""

from typing import ClassVar

import torch
from pydantic import Field

from fedssl.core.slots import Slot, Tensors
from fedssl.methods.base import Fresh, Learner
from fedssl.methods.divergence import DivergenceAware, number
from fedssl.methods.functional import snapshot
from fedssl.methods.projection import Encoder
from fedssl.methods.self_supervised import projected


class FedEMA(DivergenceAware):
    """Begin a client's round from a mixture of its own last weights and the received weights.

    W_k <- mu W_k + (1 - mu) W_g for encoder and predictor, with mu = min(1, lambda d) and d = ||W_g - W_k||. The farther a
    client is from the global model, the more it keeps of its own weights. Its first mixture fixes its own lambda = tau / d,
    so that mu is tau there. A client without a last round takes W_g. With tau = 0 and without ``selective``, this is BYOL
    under FedAvg, whose targets stay at the clients.

    In a federation, BYOL's weights travel and nothing else; no label is used. A client keeps its encoder, its predictor,
    its target and its lambda: two networks. The mixture takes no pass over images, so a step costs what BYOL's costs.

    Where the paper's server measures the first d, right after a client's first round, the client measures it here when it
    first mixes. Both are the same if it trains in two rounds in a row. Deviations of the official code: it measures d as
    the change by the last training (``divergence = "training"``), and takes the predictor's running statistics from the
    client if mu > 1/2. In a client's first round, its target and its encoder are one and the same tensors. Neither of the
    last two is reproduced.
    """

    group: ClassVar[str] = "self-supervised"

    first_share: float = Field(
        0.7, ge=0, le=1, description="tau, mu of a client's first mixture, which fixes its lambda"
    )
    scale: float | None = Field(
        None, ge=0, description="lambda, the same at all clients; unset: fixed by first_share"
    )
    selective: bool = Field(
        True,
        description="whether a client that did not train in the round before begins anew from the global model, with its "
        "target, as the official code does where clients are sampled; false: it mixes with its last weights, however old",
    )

    def slots(self) -> tuple[Slot, ...]:
        """Keep the client's lambda too."""
        return (*super().slots(), Slot("scale", "client"))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start without a lambda, which is 0."""
        if name == "scale":
            return {"lambda": number(0.0, fresh.device)}
        return super().init_slot(name, fresh)

    @torch.no_grad()
    def begin_from(self, learner: Learner, divergence: float) -> float:
        """Mix the client's own weights into the received ones, and return mu."""
        if self.selective and learner.progress.round > float(learner.state["last"]["round"]) + 1:
            if self.target_scope == "client":
                learner.state["target"] = snapshot(Encoder(projected(learner.network)))
            return 0.0
        scale = learner.state["scale"]["lambda"]
        if self.scale is not None:
            scale.fill_(self.scale)
        elif float(scale) == 0 and divergence > 0:
            scale.fill_(self.first_share / divergence)
        share = min(1.0, float(scale) * divergence)
        for key, parameter in self.own_parameters(learner.network).items():
            parameter.lerp_(learner.state["own"][key], share)
        return share
