"""Named arrays, the one form in which weights and state leave a network; and counts of a federation's clients."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

NamedArrays = Mapping[str, npt.NDArray[Any]]
"""Arrays of any shape and type by name. Nobody writes to them."""

Counts = npt.NDArray[np.int64]


def as_safetensors(arrays: NamedArrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file that holds named arrays and some metadata."""
    # save_file is not used: the files that it makes can be read by their owner only.
    plain = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    content: bytes = save(plain, None if metadata is None else dict(metadata))
    return content


def unique_pairs(first: Counts, second: Counts) -> tuple[Counts, Counts]:
    """Return the distinct pairs of two arrays in ascending order, (n, 2), and the place of each pair among them, (K,).

    `numpy.unique` over rows takes ten times as long, which is seconds for a million clients.

    Args:
        first, second: Whole numbers from 0 on, (K,), whose product fits 63 bits.

    Example:
        >>> pairs, places = unique_pairs(np.array([2, 0, 2]), np.array([5, 5, 5]))
        >>> pairs.tolist(), places.tolist()
        ([[0, 5], [2, 5]], [1, 0, 1])
    """
    width = int(second.max(initial=0)) + 1
    codes, places = np.unique(first.astype(np.int64) * width + second, return_inverse=True)
    return np.stack(np.divmod(codes, width), axis=1), places
