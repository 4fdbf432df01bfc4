"""torch's optimizers without the compiler that their first use imports.

torch wraps what an optimizer does so that `torch.compile` steps around it, and the first call of any such wrapper imports
`torch._dynamo`, sympy and two thousand modules more (torch 2.14): a second, in every process that trains. Nobody compiles
an optimizer here. These classes bind the functions that torch has wrapped; what they compute is torch's own code.
"""

import inspect
from typing import Any

import torch
from torch.optim import Optimizer


def _eager(function: Any) -> Any:
    """Return what torch wrapped; the function itself where a version of torch wraps nothing."""
    return inspect.unwrap(function)


class _Eager(Optimizer):
    """What all optimizers share."""

    add_param_group = _eager(Optimizer.add_param_group)
    zero_grad = _eager(Optimizer.zero_grad)
    state_dict = _eager(Optimizer.state_dict)
    load_state_dict = _eager(Optimizer.load_state_dict)


class SGD(_Eager, torch.optim.SGD):
    """torch's SGD."""

    step = torch.no_grad()(_eager(torch.optim.SGD.step))


class Adam(_Eager, torch.optim.Adam):
    """torch's Adam."""

    step = torch.no_grad()(_eager(torch.optim.Adam.step))


class AdamW(_Eager, torch.optim.AdamW):
    """torch's AdamW."""

    step = torch.no_grad()(_eager(torch.optim.AdamW.step))
