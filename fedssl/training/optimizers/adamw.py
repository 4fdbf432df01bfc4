"""AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101); beta_2 is .999."""

from typing import TYPE_CHECKING, ClassVar

import torch

from fedssl.core import eager_optimizers
from fedssl.training.optimizers.base import Optimizer, Parameters

if TYPE_CHECKING:
    from fedssl.training.optimization import Train


class AdamW(Optimizer):
    """Move as Adam does, but let weights decay beside the gradient and not through it."""

    is_elementwise: ClassVar[bool] = True

    def build(self, parameters: Parameters, train: "Train") -> torch.optim.Optimizer:
        """Return torch's AdamW, whose beta_1 is ``train.momentum``."""
        return eager_optimizers.AdamW(
            parameters,
            lr=train.lr,
            betas=(train.momentum, 0.999),
            weight_decay=train.weight_decay,
            foreach=True,
        )
