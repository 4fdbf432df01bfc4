"""LARS: every weight tensor has a step length of its own, in proportion to its norm.

You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv:1708.03888, Algorithm 1. As in
SimCLR (Chen et al., ICML 2020, arXiv:2002.05709, appendix B.6), norms and biases take plain steps without weight decay.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from fedssl.core.eager_optimizers import Eager
from fedssl.training.optimizers.base import Optimizer, Parameters

if TYPE_CHECKING:
    from fedssl.training.optimization import Train


class LARS(Optimizer):
    """Scale each tensor's step to its norm; one-dimensional tensors take SGD's steps, and never decay."""

    trust_coefficient: float = Field(
        0.001, gt=0, description="eta, a step's length as a share of the tensor's norm, before lr"
    )
    epsilon: float = Field(
        1e-8, ge=0, description="number that is added to the norm that the step is divided by"
    )

    def build(self, parameters: Parameters, train: "Train") -> torch.optim.Optimizer:
        """Return LARS with ``train.momentum``; it has no Nesterov form."""
        return _LARS(
            parameters,
            lr=train.lr,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            trust_coefficient=self.trust_coefficient,
            epsilon=self.epsilon,
        )


def trust_ratio(
    weight_norm: Tensor,
    gradient_norm: Tensor,
    *,
    trust_coefficient: float,
    weight_decay: float,
    epsilon: float,
) -> Tensor:
    """Return eta ||w|| / (||g|| + decay ||w|| + epsilon), the factor of a tensor's step.

    The factor is 1 where the weight or the gradient is zero, because the quotient would not move the first, and would let
    the second shrink by the same share whatever the weight decay is.

    Args:
        weight_norm: ||w||, L2 norm of each tensor, of any shape.
        gradient_norm: ||g||, L2 norm of each tensor's gradient without weight decay, of the same shape.
        trust_coefficient: eta.
        weight_decay: The weight decay.
        epsilon: Keeps the quotient finite.

    Reference: You et al., arXiv:1708.03888, equation 6.
    """
    scaled = trust_coefficient * weight_norm
    ratio = scaled / (gradient_norm + weight_decay * weight_norm + epsilon)
    return torch.where((weight_norm > 0) & (gradient_norm > 0), ratio, torch.ones_like(ratio))


class _LARS(Eager):
    """v becomes m v + lr r (g + decay w), and w becomes w - v; r is the trust ratio."""

    def __init__(self, parameters: Any, **defaults: float) -> None:
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; a closure is not used."""
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            adapted = [weight for weight in moved if weight.dim() > 1]
            plain = [weight for weight in moved if weight.dim() <= 1]
            self._move(adapted, _adapted_gradients(adapted, group), group)
            self._move(plain, [_gradient(weight) for weight in plain], group)

    def _move(self, weights: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> None:
        if not weights:
            return
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        velocities = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, directions, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)


def _adapted_gradients(weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Return r (g + decay w) of each weight tensor."""
    if not weights:
        return []
    gradients = [_gradient(weight) for weight in weights]
    ratios = trust_ratio(
        torch.stack(torch._foreach_norm(weights)),
        torch.stack(torch._foreach_norm(gradients)),
        trust_coefficient=group["trust_coefficient"],
        weight_decay=group["weight_decay"],
        epsilon=group["epsilon"],
    )
    decayed = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
    return list(torch._foreach_mul(decayed, ratios.unbind()))


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad
