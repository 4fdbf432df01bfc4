"""Stochastic gradient descent with momentum.

Nesterov's form of the momentum (``train.nesterov``) is that of Sutskever et al., "On the importance of initialization and
momentum in deep learning", ICML 2013.
"""

from typing import TYPE_CHECKING, ClassVar

import torch

from fedssl.core import eager_optimizers
from fedssl.training.optimizers.base import Optimizer, Parameters

if TYPE_CHECKING:
    from fedssl.training.optimization import Train


class SGD(Optimizer):
    """Move along the gradient, with momentum."""

    is_elementwise: ClassVar[bool] = True

    def check(self, train: "Train") -> None:
        """Refuse Nesterov's form without momentum."""
        if train.nesterov and train.momentum == 0:
            raise ValueError(
                "nesterov needs momentum above 0; raise momentum or set nesterov = false"
            )

    def build(self, parameters: Parameters, train: "Train") -> torch.optim.Optimizer:
        """Return torch's SGD."""
        return eager_optimizers.SGD(
            parameters,
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            weight_decay=train.weight_decay,
            foreach=True,
        )
