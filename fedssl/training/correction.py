"""The client half of a strategy: it changes the loss or the gradients of every step, whatever the method.

Corrections against client drift (FedProx, SCAFFOLD, FedDyn) act on a descent and not on a loss function, so they stand
behind `Learner.descend`. No method knows of them, and they work with any optimizer, precision and clipping.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedssl.core.registry import Plugin
from fedssl.core.slots import Slot, Tensors
from fedssl.methods.base import Learner

Parameters = Mapping[str, nn.Parameter]
"""Trained parameters by their names in the network. Only shared parameters are corrected, and no buffer ever is."""


class Correction:
    """What a strategy lets its clients do in each round; every hook does nothing by default.

    A correction must be hashable, because it is a part of the recipe by which clients learn: make it a frozen dataclass.

    Example:
        A new correction overrides the hooks that it needs. This one halves every gradient.

        >>> import torch
        >>> class Halved(Correction):
        ...     def correct(self, learner, parameters):
        ...         for parameter in parameters.values():
        ...             parameter.grad /= 2
        >>> weight = nn.Parameter(torch.tensor([1.0]))
        >>> weight.grad = torch.tensor([8.0])
        >>> Halved().correct(None, {"weight": weight})
        >>> weight.grad.tolist()
        [4.0]
    """

    is_elementwise: ClassVar[bool] = False
    """Whether all hooks treat each number of the weights, gradients and state alike and by itself, and `term` is a sum over
    them. Then one call can correct several small clients at once, whose weights are stacked. A hook that looks at a whole
    tensor, such as its norm, or at the client's examples must say False."""

    def slots(self) -> tuple[Slot, ...]:
        """Return the slots of the correction's state; none by default."""
        return ()

    def init_slot(self, name: str, parameters: Parameters) -> Tensors:
        """Return a slot's first content.

        Args:
            name: Name of the slot.
            parameters: All shared parameters of the network, with the current global weights.
        """
        raise NotImplementedError(
            f"{type(self).__name__} declares slot {name!r} but does not make it"
        )

    def begin(self, learner: Learner) -> None:
        """Do something before the method's `begin`, such as asking for `Learner.received`."""

    def term(self, learner: Learner, parameters: Parameters) -> Tensor | None:
        """Return a scalar that is added to the loss of a descent; None, the default, adds nothing.

        Args:
            learner: The client's training; `Learner.state` holds the correction's slots.
            parameters: The shared parameters that the descent moves; at least one.
        """
        return None

    def correct(self, learner: Learner, parameters: Parameters) -> None:
        """Change the gradients of a descent in place, before they are clipped.

        Args:
            learner: The client's training.
            parameters: The shared parameters that the descent moves; at least one. Each ``grad`` is the whole
                gradient of the loss, unscaled; it is 0 for a parameter that the loss does not depend on.
        """

    def end(self, learner: Learner) -> None:
        """Do something after the round, when the network holds the weights that the client sends."""


class WithClientHalf(Plugin):
    """A section that may bring a client half. Sections of strategies derive from it.

    Example:
        A section with a client half overrides `correction`. This one's clients do what any client does, and nothing more.

        >>> class Watched(WithClientHalf):
        ...     def correction(self):
        ...         return Correction()
        >>> Watched().correction().slots()
        ()
    """

    is_abstract: ClassVar[bool] = True
    partner: ClassVar[str] = ""
    """Method that is the clients' half of the same system; empty if the strategy does its work under any method."""

    def correction(self) -> Correction | None:
        """Return what clients do in each round; None, the default: nothing, and clients never see the section."""
        return None


def corrects_by_state(section: WithClientHalf) -> bool:
    """Return whether a strategy's clients keep or share state.

    Such a strategy begins anew with every phase, as its clients do.
    """
    correction = section.correction()
    return correction is not None and bool(correction.slots())


def squared_distance(parameters: Parameters, received: Mapping[str, Tensor]) -> Tensor:
    """Return ||w - w_received||^2 over all given parameters, a scalar; gradients flow into the parameters.

    Args:
        parameters: Parameters by name; at least one.
        received: Tensors of the same names and shapes.
    """
    return torch.stack(
        [(parameter - received[name]).square().sum() for name, parameter in parameters.items()]
    ).sum()
