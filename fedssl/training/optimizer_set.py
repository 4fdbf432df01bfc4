"""The optimizers of one network, which can be put back to their first state, kept by a client, and restored."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedssl.core.slots import Tensors

GROUP = "group"
"""A place with this prefix is a parameter group; a place that is a plain number is a parameter."""

MOVED_BY_SCHEDULES = ("params", "lr", "initial_lr")
"""Entries of a parameter group that are not kept: the network holds the parameters, and each step sets the rates."""


class OptimizerSet(Mapping[str, torch.optim.Optimizer]):
    """Optimizers by name, which can be put back to their first state.

    One network serves many clients in turn. An optimizer may keep values in its state and in its parameter groups. None
    of these values may pass from one client to the next.

    Args:
        by_name: The optimizers, which have taken no step yet.
    """

    def __init__(self, by_name: Mapping[str, torch.optim.Optimizer]) -> None:
        self._by_name = dict(by_name)
        self._fresh = {
            name: (
                _copied_state(optimizer.state),
                [_copied_group(group) for group in optimizer.param_groups],
            )
            for name, optimizer in self._by_name.items()
        }

    def __getitem__(self, name: str) -> torch.optim.Optimizer:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def forget(self) -> None:
        """Put every optimizer back to a copy of its first state, in place."""
        for name, optimizer in self._by_name.items():
            state, groups = self._fresh[name]
            optimizer.state.clear()
            optimizer.state.update(_copied_state(state))
            for group, fresh in zip(optimizer.param_groups, groups, strict=True):
                parameters = group["params"]
                group.clear()
                group.update(_copied_group(fresh), params=parameters)

    def tensors(self) -> Tensors:
        """Return the state of all optimizers as tensors, by ``NAME/PLACE/KEY``.

        NAME is the optimizer's name. PLACE is a parameter's number, or ``groupN`` for a changed entry of a parameter
        group. A number becomes a tensor without dimensions.

        Raises:
            TypeError: An optimizer keeps a value that is neither a tensor nor a number.
        """
        found: Tensors = {}
        for name, optimizer in self._by_name.items():
            for place, entries in optimizer.state_dict()["state"].items():
                for key, value in entries.items():
                    found[f"{name}/{place}/{key}"] = _as_tensor(value, f"{name}/{place}/{key}")
            _, groups = self._fresh[name]
            for number, (group, fresh) in enumerate(
                zip(optimizer.param_groups, groups, strict=True)
            ):
                for key, value in group.items():
                    where = f"{name}/{GROUP}{number}/{key}"
                    if key not in MOVED_BY_SCHEDULES and not _same(value, fresh.get(key)):
                        found[where] = _as_tensor(value, where)
        return found

    def restore(self, tensors: Tensors) -> None:
        """Load the result of `tensors`, in place, after `forget`; an optimizer without tensors stays as it is."""
        for name, optimizer in self._by_name.items():
            state: dict[int, dict[str, Tensor]] = {}
            for path, tensor in tensors.items():
                own, place, key = path.split("/", 2)
                if own != name:
                    continue
                if place.startswith(GROUP):
                    group = optimizer.param_groups[int(place.removeprefix(GROUP))]
                    is_tensor = isinstance(group.get(key), Tensor)
                    group[key] = tensor.clone() if is_tensor or tensor.dim() else tensor.item()
                else:
                    state.setdefault(int(place), {})[key] = tensor
            if state:
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": state, "param_groups": groups})


_PLAIN = (bool, int, float, str, type(None))
"""Values of these types cannot change, so they need no copy."""


def _copied_state(state: Mapping[Tensor, dict[str, Any]]) -> dict[Tensor, dict[str, Any]]:
    """Return a copy of an optimizer's state by parameter; the parameters themselves are not copied."""
    return {parameter: copy.deepcopy(entries) for parameter, entries in state.items()}


def _copied_group(group: Mapping[str, Any]) -> dict[str, Any]:
    values = ((key, value) for key, value in group.items() if key != "params")
    return {k: v if isinstance(v, _PLAIN) else copy.deepcopy(v) for k, v in values}


def _as_tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, bool | int | float):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    raise TypeError(
        f"train.keep_momentum keeps only tensors and numbers, but the optimizer's {where} is a {type(value).__name__}"
    )


def _same(value: Any, fresh: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(fresh, Tensor):
        return torch.equal(value, fresh)
    return type(value) is type(fresh) and bool(value == fresh)
