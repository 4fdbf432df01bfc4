"""Weighted sums of models in a fixed tree, so that the order of arrival cannot change a bit."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[np.generic]]
Sums = dict[str, npt.NDArray[np.float64]]


class WeightedSum:
    """Sum of weight_i * arrays_i over positions 0 .. size-1, added in any order, one at a time.

    Positions are the leaves of a binary tree; two siblings are added as soon as both are there. The shape of the tree
    depends on `size` alone, so the bits do not depend on who came first. At most the unmatched siblings are held:
    about log2(size) models when replies come roughly in order. Sums are double precision: the mean of equal single
    precision models is that model, exactly.

    Args:
        size: Number of positions; every one must be added or skipped before `result`.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a sum needs at least one position, not {size}")
        self._size = size
        self._nodes: dict[tuple[int, int], tuple[Sums | None, float]] = {}

    def add(self, position: int, arrays: Arrays, weight: float) -> None:
        """Add one model at its position.

        Args:
            position: Place in the cohort, 0 .. size-1, each once.
            arrays: Named arrays, the same names and shapes at every position.
            weight: Not negative; 0 leaves the model out.
        """
        if weight == 0:
            self.skip(position)
            return
        # asarray: numpy multiplies a 0-d array to a scalar, which cannot be added to in place.
        sums = {
            name: np.asarray(np.multiply(array, weight, dtype=np.float64))
            for name, array in arrays.items()
        }
        self._climb(position, sums, float(weight))

    def skip(self, position: int) -> None:
        """Leave a position out."""
        self._climb(position, None, 0.0)

    def result(self) -> tuple[Sums | None, float]:
        """Return (sums, total weight); sums are None if every position was left out."""
        root = (max(0, (self._size - 1).bit_length()), 0)
        if set(self._nodes) != {root}:
            raise ValueError("some positions were neither added nor skipped")
        return self._nodes[root]

    def _climb(self, position: int, sums: Sums | None, weight: float) -> None:
        if not 0 <= position < self._size:
            raise ValueError(f"position {position} is not below {self._size}")
        level, index = 0, position
        while (1 << level) < self._size:
            sibling = index ^ 1
            beyond = (sibling << level) >= self._size
            if not beyond and (level, sibling) not in self._nodes:
                break
            other, other_weight = (None, 0.0) if beyond else self._nodes.pop((level, sibling))
            sums, weight = _plus(sums, other), weight + other_weight
            level, index = level + 1, index >> 1
        if (level, index) in self._nodes:
            raise ValueError(f"position {position} was added twice")
        self._nodes[level, index] = (sums, weight)


def _plus(first: Sums | None, second: Sums | None) -> Sums | None:
    """Add two sums, into the first one's memory."""
    if first is None or second is None:
        return second if first is None else first
    for name, array in first.items():
        np.add(array, second[name], out=array)
    return first


def cohort_mean(
    sums: Sums, total_weight: float, like: Arrays
) -> dict[str, npt.NDArray[np.generic]]:
    """Return sum_{k in S} n_k w_k / sum_{k in S} n_k, in the types of `like`.

    Integer arrays, such as BatchNorm's step counter, are rounded and stay integers.

    Args:
        sums, total_weight: As `WeightedSum.result` returns them; the weight is positive.
        like: The global arrays.

    Reference:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
        arXiv:1602.05629, Algorithm 1, with the sampled clients' weights summing to 1.
    """
    return {name: as_type(sums[name] / total_weight, like[name]) for name in like}


def population_mean(
    sums: Sums, total_weight: float, population_weight: float, like: Arrays
) -> dict[str, npt.NDArray[np.generic]]:
    """Return w + sum_{k in S} (n_k / n) (w_k - w): clients that were not sampled keep the global model.

    Args:
        sums, total_weight: As `WeightedSum.result` returns them.
        population_weight: n, the sum of n_k over all K clients.
        like: The global arrays w.

    Reference:
        Li et al., "On the Convergence of FedAvg on Non-IID Data", ICLR 2020, arXiv:1907.02189, section 3.
    """
    kept = 1 - total_weight / population_weight
    return {
        name: as_type(np.multiply(w, kept, dtype=np.float64) + sums[name] / population_weight, w)
        for name, w in like.items()
    }


def move_average(
    average: Arrays, arrays: Arrays, decay: float, buffers: Collection[str] = ()
) -> dict[str, npt.NDArray[np.generic]]:
    """Return decay * average + (1 - decay) * arrays for weights; buffers and integer arrays are taken as they are.

    Args:
        average, arrays: By name.
        decay: In [0, 1].
        buffers: Names of what is no weight, such as the statistics of batch normalization.

    Reference:
        Tarvainen & Valpola (Mean Teacher), NeurIPS 2017, whose averages take the student's buffers.
    """

    def moved(name: str, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        if name in buffers or not np.issubdtype(array.dtype, np.floating):
            return array
        kept = np.multiply(average[name], decay, dtype=np.float64)
        return as_type(kept + np.multiply(array, 1 - decay, dtype=np.float64), array)

    return {name: moved(name, array) for name, array in arrays.items()}


def is_finite(arrays: Arrays) -> bool:
    """Say whether no array holds a NaN or an infinity."""
    return all(bool(np.isfinite(array).all()) for array in arrays.values())


def as_type(values: npt.NDArray[Any], like: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return values in the type of `like`; towards integers they are rounded, not cut."""
    if np.issubdtype(like.dtype, np.integer):
        values = np.rint(values)
    return np.asarray(values).astype(like.dtype, copy=False)
