"""FedU.

Zhuang, Gan, Wen, Zhang & Yi, "Collaborative Unsupervised Visual Representation Learning from Decentralized Data", ICCV 2021,
arXiv:2108.06492.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from fedssl.methods.base import Learner
from fedssl.methods.divergence import Divergence, DivergenceAware, predictor_parameters


class FedU(DivergenceAware):
    """Take the received predictor where the client is near the global model, and keep the client's own where it is not.

    The encoder always comes from the global model. The predictor does so too if d < the threshold. A client without a last
    round takes all of W_g.

    In a federation, BYOL's weights travel and nothing else; no label is used. A client keeps its target and its predictor:
    a little more than one network. A step costs what BYOL's costs.

    The threshold of .4 is on the scale of the official code, whose d is the mean over the convolutions of how far the last
    training has moved each of them. So this d is the default here. With ``divergence = "received"``, d is FedEMA's distance
    of whole encoders, which is several times larger, and the client keeps its encoder too.
    """

    group: ClassVar[str] = "self-supervised"

    divergence: Divergence = Field(
        "training",
        description="d; training: change of the encoder by the client's last training, as in the official code; received: "
        "Euclidean distance between the received encoder and the client's last one",
    )
    threshold: float = Field(
        0.4, ge=0, description="d from which on a client keeps its own predictor"
    )

    def own_parameters(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """Keep the predictor alone, unless d compares encoders."""
        if self.divergence == "training":
            return predictor_parameters(network)
        return super().own_parameters(network)

    @torch.no_grad()
    def begin_from(self, learner: Learner, divergence: float) -> float:
        """Put the client's own predictor into the network if d reaches the threshold, and return 1 in that case, else 0."""
        if divergence < self.threshold:
            return 0.0
        for key, parameter in predictor_parameters(learner.network).items():
            parameter.copy_(learner.state["own"][key])
        return 1.0
