"""Client drift: how far training takes weights from where it began.

Karimireddy et al. (SCAFFOLD), ICML 2020, arXiv:1910.06378, show what clients with unlike data do to an average.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedssl.core.arrays import NamedArrays

Doubles = npt.NDArray[np.float64]

SMALL = 65_536
"""Arrays of fewer numbers are measured in one go, since a call takes longer than their arithmetic."""


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
    # Neither the order of names nor an array's layout in memory may change how the sum rounds: a checkpoint keeps another
    # order. So arrays follow each other by name, and each is flattened in the order of its indices.
    names = sorted(n for n, stack in stacks.items() if np.issubdtype(stack.dtype, np.floating))
    small = [name for name in names if before[name].size < SMALL]
    blocks = [small] if small else []
    blocks += [[name] for name in names if before[name].size >= SMALL]
    squares = [_sums_of_squares(before, stacks, block) for block in blocks]
    return [math.sqrt(math.fsum(own)) for own in np.transpose(squares).tolist()]


def _sums_of_squares(before: NamedArrays, stacks: NamedArrays, names: Sequence[str]) -> Doubles:
    """Return each client's sum of squared changes over some arrays, which are put into one."""
    start = np.concatenate([before[name].ravel() for name in names], dtype=np.float64)
    end = [stacks[name].reshape(len(stacks[name]), -1) for name in names]
    change = np.concatenate(end, axis=1, dtype=np.float64)
    change -= start
    np.square(change, out=change)
    sums: Doubles = change.sum(axis=1)
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
