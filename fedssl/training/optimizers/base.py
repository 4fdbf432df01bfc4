"""The base class of optimizers; an optimizer makes torch's object from the settings of ``[train]`` and its own."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from fedssl.core.registry import Family, Plugin

if TYPE_CHECKING:
    from fedssl.training.optimization import Train

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
"""What torch's optimizers take: parameters, or groups of parameters with settings of their own."""


class Optimizer(Plugin):
    """An optimizer of clients, with the settings that no other optimizer has.

    The learning rate, the momentum and the weight decay are settings of ``[train]``, the same for every optimizer.

    Example:
        A new optimizer defines `build`:

        >>> from fedssl.training.optimization import Train
        >>> class Rprop(Optimizer):
        ...     def build(self, parameters, train):
        ...         return torch.optim.Rprop(parameters, lr=train.lr)
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> Rprop().build([weight], Train(lr=0.2)).param_groups[0]["lr"]
        0.2
    """

    is_abstract: ClassVar[bool] = True
    is_elementwise: ClassVar[bool] = False
    """Whether a number's step depends on the gradients of this number only, and not on the rest of its tensor. Only then
    clients can be fused."""

    @abstractmethod
    def build(self, parameters: Parameters, train: "Train") -> torch.optim.Optimizer:
        """Return torch's optimizer.

        Args:
            parameters: The parameters, or groups of them. A group may set its own ``lr`` and ``weight_decay``.
            train: The ``[train]`` section with the learning rate, the momentum and the weight decay.
        """

    def check(self, train: "Train") -> None:
        """Raise `ValueError` if the optimizer cannot use the other settings of ``[train]``; by default it can."""


OPTIMIZERS = Family(
    "optimizer", "fedssl.training.optimizers", Optimizer, "train.optimizer", default="sgd"
)
