"""Checks of a reply: its numbers must be finite, within their ranges, and agree with the census.

A reply comes from another party, which may have failed or may lie. A reply that is refused here is left out of every
sum.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from fedssl.core.arrays import NamedArrays
from fedssl.exchange import protocol
from fedssl.exchange.sums import is_finite

COUNT_LIMIT = 2.0**53
"""A count must be below this number: double precision holds every integer up to it."""

LARGEST_LOSS = 1e30
"""A mean loss beyond this number means that training diverged."""

CALMER = "lower train.lr, or what else makes steps large: a loss's weight or rho in [method], server_lr, mu or alpha in [strategy]"
"""What helps if training diverges at clients; a term of the method, or of the strategy, may be too large as well."""

LARGEST_WEIGHT = 1e10
"""A weight that is averaged has at most this magnitude. Networks that work stay ten thousand times below it. Any weight
within it can be squared, summed and averaged in single precision."""

LARGEST_NUMBER = 1e30
"""A metric that the protocol does not know has at most this magnitude."""

LONGEST_LIST = 400_000
"""A list among the metrics has at most this many numbers: four for each of 100,000 classes."""

ROUNDING = 1e-6
"""A sum of weights may exceed the count that it is a part of by this relative amount."""

VARIANCE = "running_var"
"""Torch gives this name to the variance that batch normalization measures. If it is below zero, its square root is NaN
at every client."""

UPPER = {
    protocol.NUM_STEPS: COUNT_LIMIT,
    **dict.fromkeys(protocol.COUNTS, COUNT_LIMIT),
    **dict.fromkeys(protocol.PSEUDO_COUNTS, COUNT_LIMIT),
    protocol.SECONDS: 1e9,
    protocol.UPDATE_NORM: 1e20,
}
"""Each known metric must be below its value in this table, and none may be negative."""


class Holding(NamedTuple):
    """What the census says about a client.

    Args:
        client: Number of the client.
        num_examples: Number of its training images.
        num_labeled: Number of its labeled training images.
    """

    client: int
    num_examples: int
    num_labeled: int


def flaw_of_metrics(
    metrics: Mapping[str, float], lists: Mapping[str, Sequence[float]], holding: Holding | None
) -> str | None:
    """Return why the metrics of a reply must not be believed, or None.

    Args:
        metrics: The single-valued metrics.
        lists: The metrics that are lists.
        holding: What the census says about the client; None: unknown.
    """
    return (
        _flaw_of_ranges(metrics)
        or _flaw_of_loss(metrics)
        or (None if holding is None else _flaw_of_holding(metrics, holding))
        or _flaw_of_parts(metrics)
        or _flaw_of_lists(lists)
    )


def _flaw_of_ranges(metrics: Mapping[str, float]) -> str | None:
    for name in protocol.COUNTS:
        if name not in metrics:
            return f"the reply's {name} is missing"
    for name, value in metrics.items():
        if name in UPPER:
            is_wrong = not 0 <= value < UPPER[name]
        else:
            is_wrong = name != protocol.LOSS and not abs(value) <= LARGEST_NUMBER
        if is_wrong:
            return f"the reply's {name[:50]} is {value:g}"
    for name in (protocol.NUM_EXAMPLES, protocol.NUM_LABELED, protocol.NUM_STEPS):
        value = metrics.get(name, 0.0)
        if value != int(value):
            return f"the reply's {name} is {value:g}, which is not a whole number"
    return None


def _flaw_of_loss(metrics: Mapping[str, float]) -> str | None:
    loss = metrics.get(protocol.LOSS, math.nan)
    if abs(loss) <= LARGEST_LOSS:
        return None
    if math.isnan(loss) and not metrics.get(protocol.NUM_STEPS):
        return None  # a client that took no step has no loss
    return f"training diverged: the reply's loss is {loss:g}; {CALMER}"


def _flaw_of_holding(metrics: Mapping[str, float], holding: Holding) -> str | None:
    client = metrics.get(protocol.CLIENT, holding.client)
    if client != holding.client:
        return f"the reply says that it is from client {client:g}, but client {holding.client} was asked"
    said = {
        protocol.NUM_EXAMPLES: holding.num_examples,
        protocol.NUM_LABELED: holding.num_labeled,
    }
    for name, count in said.items():
        if metrics[name] != count:
            return f"the reply's {name} is {metrics[name]:.0f}, but the census says {count}"
    return None


def _flaw_of_parts(metrics: Mapping[str, float]) -> str | None:
    """Return which count exceeds the count that it is a part of, or None."""
    chains = (
        (protocol.NUM_EXAMPLES, protocol.NUM_LABELED),
        (protocol.NUM_EXAMPLES, protocol.NUM_CONFIDENT),
        *itertools.pairwise(protocol.PSEUDO_COUNTS),
    )
    for whole, part in chains:
        if metrics.get(part, 0.0) > metrics.get(whole, 0.0) * (1 + ROUNDING):
            return f"the reply's {part} is {metrics[part]:g}, more than its {whole}"
    return None


def _flaw_of_lists(lists: Mapping[str, Sequence[float]]) -> str | None:
    """Return which list is too long or holds a number that is not a count, or None."""
    for name, counts in lists.items():
        if len(counts) > LONGEST_LIST:
            return f"the reply's {name[:50]} has {len(counts)} numbers, more than {LONGEST_LIST}"
        false = next((count for count in counts if not 0 <= count < COUNT_LIMIT), None)
        if false is not None:
            return f"the reply's {name[:50]} holds {false:g}"
    return None


def flaw_of_arrays(arrays: NamedArrays) -> str | None:
    """Return why arrays must not be averaged, or None."""
    if all(_is_within(array) for array in arrays.values()):
        return _flaw_of_variances(arrays)
    if not is_finite(arrays):
        return "the reply's weights are not finite"
    return f"training diverged: the reply's weights reach beyond {LARGEST_WEIGHT:g}; {CALMER}"


def _flaw_of_variances(arrays: NamedArrays) -> str | None:
    negative = next(
        (n for n, a in arrays.items() if n.endswith(VARIANCE) and a.size and a.min() < 0), None
    )
    return None if negative is None else f"the reply's {negative[:200]} is a variance below zero"


def _is_within(array: npt.NDArray[Any]) -> bool:
    # If an array holds a NaN, max and min both return NaN, and a comparison with NaN is false.
    return not array.size or bool(array.max() <= LARGEST_WEIGHT and array.min() >= -LARGEST_WEIGHT)
