"""Read what a strategy keeps between rounds from its attributes, as named arrays, for any Flower strategy.

Numbers, texts, arrays, tensors, Flower's `ArrayRecord`, and lists and tables of them can be kept. Settings and
functions are skipped, because they do not change. An attribute of any other type, such as a generator, is refused when
the run begins, and not only when it is resumed. If such an attribute first appears in a round, the run goes on without
checkpoints.
"""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.core.kept import Keeps, as_array, from_array
from fedssl.core.registry import Section
from fedssl.exchange import protocol
from fedssl.exchange.census import Cohorts

STRUCTURE = "structure"
"""Name of the array that says, as JSON, how attributes are put together from the other arrays."""


class KeptStrategy:
    """Save and restore what any Flower strategy keeps between rounds.

    Args:
        strategy: The strategy. If it implements `Keeps`, it says itself what it keeps; if not, its attributes are read.
    """

    def __init__(self, strategy: object) -> None:
        self._strategy = strategy

    def kept(self) -> NamedArrays:
        """Return what the strategy keeps.

        Raises:
            InputError: The strategy keeps something that cannot be stored.
        """
        own = self._strategy
        return own.kept() if isinstance(own, Keeps) else read_attributes(own)

    def take_up(self, kept: NamedArrays) -> None:
        """Give the strategy, which was just built, what `kept` returned."""
        if isinstance(self._strategy, Keeps):
            self._strategy.take_up(kept)
        else:
            write_attributes(self._strategy, kept)


def read_attributes(strategy: object, without: Collection[str] = ()) -> NamedArrays:
    """Return a copy of a strategy's attributes as named arrays.

    Args:
        strategy: Any object.
        without: Names of attributes that the next round does not need.

    Raises:
        InputError: An attribute cannot be kept.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    structure = {}
    for name, value in vars(strategy).items():
        if name in without or _never_changes(value):
            continue
        try:
            structure[name] = _take_apart(value, name, arrays)
        except TypeError as error:
            raise InputError(
                "strategy.kind",
                f"{type(strategy).__name__} cannot be resumed: its attribute {name!r} holds {error}",
                "let it override kept() and take_up()",
            ) from None
    if not structure:
        return {}
    return {**arrays, STRUCTURE: as_array(structure)}


def write_attributes(strategy: object, state: NamedArrays) -> None:
    """Set the attributes that `read_attributes` has read on a strategy."""
    if not state:
        return
    structure = from_array(state[STRUCTURE])
    for name, part in structure.items():
        setattr(strategy, name, _put_together(part, state))


def _never_changes(value: Any) -> bool:
    function = inspect.isroutine(value) or inspect.isclass(value)
    return function or isinstance(value, functools.partial | Section | Cohorts)


def _take_apart(value: Any, where: str, arrays: dict[str, npt.NDArray[Any]]) -> Any:
    """Return a value as JSON can hold it, and copy the arrays in it into `arrays`.

    Args:
        value: The value.
        where: Path of the value among the strategy's attributes; the names of its arrays contain it.
        arrays: Filled with the value's arrays.

    Raises:
        TypeError: The value, or a part of it, cannot be kept.
    """
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return {"value": value}
    if isinstance(value, ArrayRecord):
        items = protocol.from_record(value).items()
        return {"record": [[k, _take_apart(v, f"{where}/{k}", arrays)] for k, v in items]}
    if type(value) in (dict, OrderedDict) and all(type(key) in (str, int) for key in value):
        items = value.items()
        return {"table": [[k, _take_apart(v, f"{where}/{k}", arrays)] for k, v in items]}
    if type(value) in (list, tuple):
        parts = [_take_apart(v, f"{where}/{i}", arrays) for i, v in enumerate(value)]
        return {type(value).__name__: parts}
    name = f"{len(arrays)}.{where}"
    if isinstance(value, torch.Tensor):
        arrays[name] = value.detach().cpu().numpy().copy()
        return {"tensor": name}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        arrays[name] = np.array(value)
        return {"array" if isinstance(value, np.ndarray) else "scalar": name}
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__}")


def _put_together(part: Mapping[str, Any], state: NamedArrays) -> Any:
    ((kind, value),) = part.items()
    if kind == "array":
        return state[value].copy()
    if kind == "scalar":
        return state[value][()]
    if kind == "tensor":
        return torch.from_numpy(state[value].copy())
    if kind == "list":
        return [_put_together(item, state) for item in value]
    if kind == "tuple":
        return tuple(_put_together(item, state) for item in value)
    if kind == "table":
        return {key: _put_together(item, state) for key, item in value}
    if kind == "record":
        return protocol.to_record({key: _put_together(item, state) for key, item in value})
    return value
