"""Weighted sums of models in a fixed tree, so that the order in which models arrive cannot change a bit."""

import heapq
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedssl.core.arrays import NamedArrays

Double = npt.NDArray[np.float64]
Sums = dict[str, Double]
Span = tuple[int, int]
"""A range of positions (start, stop); stop is not included."""


class WeightedSum:
    """Sum weight_i * arrays_i over positions 0 .. size-1, added in any order, one at a time or as sums of parts.

    Positions are the leaves of a binary tree in which every node is cut in the middle. Two siblings are added as soon
    as both have arrived. The shape of the tree depends on `size` alone, so the bits depend neither on the order of
    arrival nor on the process that sums a node: a process with all positions of a node may sum them in a `WeightedSum`
    of the node's length, whose tree has the same shape, and hand in the result. Only siblings that wait for each other
    are held: about log2(size) models if replies come roughly in order. Sums have double precision, so the mean of equal
    models in single precision is exactly that model.

    Args:
        size: Number of positions; every position must be added or skipped before `result` is called.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a sum needs at least one position, not {size}")
        self._size = size
        self._nodes: dict[Span, tuple[Sums | None, float]] = {}

    def add(self, position: int, arrays: NamedArrays, weight: float) -> None:
        """Add one model at its position.

        Args:
            position: Place in the cohort, 0 .. size-1, each once.
            arrays: Named arrays, the same names and shapes at every position.
            weight: Weight of the model, not negative; 0 leaves the model out.
        """
        if weight == 0:
            self.skip(position)
            return
        # The product of a 0-d array is a numpy scalar, which cannot be added to in place; asarray makes it an array.
        sums = {
            name: np.asarray(np.multiply(array, weight, dtype=np.float64))
            for name, array in arrays.items()
        }
        self.add_part((position, position + 1), sums, float(weight))

    def skip(self, position: int) -> None:
        """Leave a position out."""
        self.add_part((position, position + 1), None, 0.0)

    def add_part(self, span: Span, sums: Sums | None, weight: float) -> None:
        """Add the sum over all positions of a node, as a `WeightedSum` of the node's length returns it.

        Args:
            span: Start and stop of the node's positions; it must be a node of this tree, as `parts` returns them.
            sums: Sums of the node. Arrays that are writeable may be overwritten from now on.
            weight: Total weight of the sums.
        """
        *above, node = self._path(span)
        if node in self._nodes:
            raise ValueError(f"positions {span} were added twice")
        for parent in reversed(above):
            sibling = _other_half(parent, node)
            if sibling not in self._nodes:
                break
            other, other_weight = self._nodes.pop(sibling)
            sums, weight, node = _plus(sums, other), weight + other_weight, parent
        self._nodes[node] = (sums, weight)

    def result(self) -> tuple[Sums | None, float]:
        """Return (sums, total weight); the sums are None if every position was left out."""
        if set(self._nodes) != {(0, self._size)}:
            raise ValueError("some positions were neither added nor skipped")
        return self._nodes[0, self._size]

    def _path(self, span: Span) -> list[Span]:
        """Return the nodes of the tree from the root down to the given node."""
        path = [(0, self._size)]
        low, high = span
        if not 0 <= low < high <= self._size:
            raise ValueError(f"positions {span} are not among the {self._size}")
        while path[-1] != span:
            left, right = halves(path[-1])
            path.append(left if low < left[1] else right)
            if path[-1][0] > low or path[-1][1] < high:
                raise ValueError(f"positions {span} are no node of a tree of {self._size}")
        return path


def halves(span: Span) -> tuple[Span, Span]:
    """Return the two children of a node of more than one position; the right child is the longer, if one is."""
    low, high = span
    middle = low + (high - low) // 2
    return (low, middle), (middle, high)


def parts(span: Span, count: int) -> list[Span]:
    """Return the `count` nodes, in order, into which a node is cut by halving the longest; fewer if it is too short."""
    # The heap yields the longest node; among nodes of equal length, the node with the lowest positions.
    cut = [(span[0] - span[1], span)]
    while len(cut) < min(count, span[1] - span[0]):
        _, longest = heapq.heappop(cut)
        for half in halves(longest):
            heapq.heappush(cut, (half[0] - half[1], half))
    return sorted(node for _, node in cut)


def without(span: Span, position: int) -> list[Span]:
    """Return the nodes, in order, that together make up a node without one position."""
    before: list[Span] = []
    after: list[Span] = []
    while span[1] - span[0] > 1:
        left, right = halves(span)
        if position < left[1]:
            after.append(right)
            span = left
        else:
            before.append(left)
            span = right
    return [*before, *reversed(after)]


def _other_half(parent: Span, node: Span) -> Span:
    left, right = halves(parent)
    return right if node == left else left


def _plus(first: Sums | None, second: Sums | None) -> Sums | None:
    """Return the sum of two sums, in the memory of either if it is writeable."""
    if first is None or second is None:
        return second if first is None else first
    return {name: _add(array, second[name]) for name, array in first.items()}


def _add(first: Double, second: Double) -> Double:
    # Arrays out of shared memory are read-only.
    into = next((array for array in (first, second) if array.flags.writeable), None)
    return np.asarray(np.add(first, second, out=into))


def cohort_mean(
    sums: Sums, total_weight: float, like: NamedArrays
) -> dict[str, npt.NDArray[np.generic]]:
    """Return sum_{k in S} n_k w_k / sum_{k in S} n_k, in the types of `like`.

    Integer arrays, such as BatchNorm's step counter, are rounded and stay integers.

    Args:
        sums, total_weight: As `WeightedSum.result` returns them; the weight must be positive.
        like: The global arrays.

    Reference:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
        arXiv:1602.05629, Algorithm 1, with the sampled clients' weights summing to 1.
    """
    return {name: as_type(sums[name] / total_weight, like[name]) for name in like}


def weighted_mean(models: Sequence[NamedArrays], weights: Sequence[float] | Double) -> Sums:
    """Return sum_i w_i theta_i / sum_i w_i in double precision, summed in a fixed tree.

    Args:
        models: Named arrays; at least one model.
        weights: Weight of each model, not negative; their sum is above 0.
    """
    total = WeightedSum(len(models))
    for place, (model, weight) in enumerate(zip(models, weights, strict=True)):
        total.add(place, model, float(weight))
    sums, weight = total.result()
    assert sums is not None
    return {name: array / weight for name, array in sums.items()}


def population_mean(
    sums: Sums, total_weight: float, population_weight: float, like: NamedArrays
) -> dict[str, npt.NDArray[np.generic]]:
    """Return w + sum_{k in S} (n_k / n) (w_k - w): clients that were not sampled count with the global model.

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
    average: NamedArrays, arrays: NamedArrays, decay: float, buffers: Collection[str] = ()
) -> dict[str, npt.NDArray[np.generic]]:
    """Return decay * average + (1 - decay) * arrays for weights; buffers and integers are copied from `arrays`.

    So the average of a network with batch statistics (``norm = "batch"`` or ``"static"``) is evaluated with the
    statistics of the last model.

    Args:
        average: The average so far, by name.
        arrays: The newest model, by name.
        decay: Weight of the average so far, in [0, 1].
        buffers: Names of arrays that are not weights, such as the statistics of batch normalization.

    Reference:
        The averaged model of Sohn et al. (FixMatch), NeurIPS 2020, whose official code averages the trained weights and
        shares the others. (In the code of Mean Teacher, the teacher has batch statistics of its own passes.)
    """

    def moved(name: str, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        if name in buffers or not np.issubdtype(array.dtype, np.floating):
            return array
        kept = np.multiply(average[name], decay, dtype=np.float64)
        return as_type(kept + np.multiply(array, 1 - decay, dtype=np.float64), array)

    return {name: moved(name, array) for name, array in arrays.items()}


def is_finite(arrays: NamedArrays) -> bool:
    """Return whether no array holds a NaN or an infinity."""
    return all(bool(np.isfinite(array).all()) for array in arrays.values())


def as_type(values: npt.NDArray[Any], like: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return values in the type of `like`; values that become integers are rounded, not truncated."""
    if np.issubdtype(like.dtype, np.integer):
        values = np.rint(values)
    with np.errstate(over="ignore"):  # whoever takes the values up refuses what is not finite
        return np.asarray(values).astype(like.dtype, copy=False)
