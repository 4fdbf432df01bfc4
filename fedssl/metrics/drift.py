"""Client drift: how far training takes weights from where it began.

Karimireddy et al. (SCAFFOLD), ICML 2020, arXiv:1910.06378, show what clients with unlike data do to an average.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fedssl.core.arrays import NamedArrays


def update_norm(before: NamedArrays, after: NamedArrays) -> float:
    """Return the L2 norm of the change of all floating-point arrays together, in double precision.

    Args:
        before: Arrays by name; arrays that `after` lacks are ignored.
        after: Arrays of the same shapes. Integer arrays, which count steps, are ignored.
    """
    return update_norms(before, {name: array[np.newaxis] for name, array in after.items()})[0]


def update_norms(before: NamedArrays, stacks: NamedArrays) -> list[float]:
    """Return `update_norm` for each of M clients that began at the same weights.

    Args:
        before: The weights at which the clients began, by name.
        stacks: The clients' weights after training, by name, each (M, *shape); at least one array.
    """
    squares = [
        _sums_of_squares(before[name], stack)
        for name, stack in stacks.items()
        if np.issubdtype(stack.dtype, np.floating)
    ]
    # The sums are exact, because the order of names must not matter: a checkpoint keeps another order.
    return [math.sqrt(math.fsum(own)) for own in np.transpose(squares).tolist()]


def _sums_of_squares(before: npt.NDArray[Any], stack: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    change = np.subtract(stack, before, dtype=np.float64)
    np.square(change, out=change)
    # Arrays are flattened in the order of indices, so that their layout in memory cannot change how the sum rounds.
    sums: npt.NDArray[np.float64] = change.reshape(len(change), -1).sum(axis=1)
    return sums


def rounding_norm(arrays: NamedArrays) -> float:
    """Return the largest L2 norm by which rounding to their types can have moved floating-point arrays.

    Args:
        arrays: Arrays by name; integer arrays are ignored.
    """
    moved = (
        float(np.finfo(array.dtype).eps) * float(np.linalg.norm(array.astype(np.float64)))
        for array in arrays.values()
        if np.issubdtype(array.dtype, np.floating)
    )
    return math.sqrt(math.fsum(own * own for own in moved))
