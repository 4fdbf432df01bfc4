"""torch's optimizers without the compiler that their first use imports.

torch wraps the methods of its optimizers so that `torch.compile` skips them. The first call of any such wrapper imports
`torch._dynamo`, sympy and two thousand more modules (torch 2.14), which takes a second in every process that trains.
fedssl compiles no optimizer, so these classes bind the functions inside the wrappers. The computation stays torch's own
code.
"""

import inspect
from typing import Any

import torch
from torch.optim import Optimizer


def _eager(function: Any) -> Any:
    """Return the function inside torch's wrapper, or the function itself if this version of torch does not wrap it."""
    return inspect.unwrap(function)


class Eager(Optimizer):
    """The methods that all optimizers share."""

    add_param_group = _eager(Optimizer.add_param_group)
    zero_grad = _eager(Optimizer.zero_grad)
    state_dict = _eager(Optimizer.state_dict)
    load_state_dict = _eager(Optimizer.load_state_dict)


class SGD(Eager, torch.optim.SGD):
    """torch's SGD, without the wrapper."""

    step = torch.no_grad()(_eager(torch.optim.SGD.step))


class Adam(Eager, torch.optim.Adam):
    """torch's Adam, without the wrapper."""

    step = torch.no_grad()(_eager(torch.optim.Adam.step))


class AdamW(Eager, torch.optim.AdamW):
    """torch's AdamW, without the wrapper."""

    step = torch.no_grad()(_eager(torch.optim.AdamW.step))


class LBFGS(Eager, torch.optim.LBFGS):
    """torch's L-BFGS, without the wrapper."""

    step = torch.no_grad()(_eager(torch.optim.LBFGS.step))
