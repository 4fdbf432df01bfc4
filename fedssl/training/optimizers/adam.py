"""Adam (Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980); beta_2 is .999."""

from typing import TYPE_CHECKING, ClassVar

import torch

from fedssl.core import eager_optimizers
from fedssl.training.optimizers.base import Optimizer, Parameters

if TYPE_CHECKING:
    from fedssl.training.optimization import Train


class Adam(Optimizer):
    """Move by the mean gradient over its size; weights decay through the gradient."""

    is_elementwise: ClassVar[bool] = True

    def build(self, parameters: Parameters, train: "Train") -> torch.optim.Optimizer:
        """Return torch's Adam, whose beta_1 is ``train.momentum``."""
        return eager_optimizers.Adam(
            parameters,
            lr=train.lr,
            betas=(train.momentum, 0.999),
            weight_decay=train.weight_decay,
            foreach=True,
        )
