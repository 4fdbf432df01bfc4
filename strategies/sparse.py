"""Messages of weights in which only the entries that changed travel: what a receiver gets, and how many bytes it takes.

The messages of fedssl carry whole arrays. So a sparse message is a whole array with exactly the values that its receiver
would put together, and these functions count what a real one would need.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fedssl.core.arrays import NamedArrays
from fedssl.methods.base import Learner
from fedssl.training.correction import Correction, Parameters

INDEX_BYTES = 4
"""Size (bytes) of the position of an entry that travels alone."""

MOVED = "sparse.moved"
"""Name of the note of which parameters a client's steps have moved."""


def with_changes_above(threshold: float, old: NamedArrays, new: NamedArrays) -> NamedArrays:
    """Return the new arrays, but the old value of each entry that differs by at most a threshold.

    Args:
        threshold: Largest absolute change that does not travel; only changes of floating-point arrays are small.
        old, new: Arrays of the same names and shapes; an array that `old` lacks is new as a whole.
    """
    return {
        name: array
        if name not in old or not np.issubdtype(array.dtype, np.floating)
        else np.where(np.abs(array - old[name]) > threshold, array, old[name])
        for name, array in new.items()
    }


def saved_bytes(old: NamedArrays, new: NamedArrays) -> int:
    """Return how many bytes fewer the new arrays take if the receiver has the old ones, and only changes travel.

    An entry that travels alone takes its own size and `INDEX_BYTES`. An array travels whole if that takes fewer bytes.
    """
    saved = 0
    for name, array in new.items():
        if name in old:
            changed = int(np.count_nonzero(array != old[name]))
            saved += max(0, array.nbytes - changed * (array.itemsize + INDEX_BYTES))
    return saved


def share_of_changes(old: NamedArrays, new: NamedArrays) -> float:
    """Return the share of the entries of the new arrays that are not those of the old ones; 1 if there is nothing old."""
    changed = sum(
        int(np.count_nonzero(array != old[name])) if name in old else array.size
        for name, array in new.items()
    )
    return changed / sum(array.size for array in new.values())


@dataclass(frozen=True)
class SmallChanges(Correction):
    """The client half: after the last step, parameters that changed by at most a threshold are put back.

    Args:
        threshold: Largest absolute change that does not travel.
    """

    threshold: float

    def begin(self, learner: Learner) -> None:
        """Keep the received weights at hand."""
        _ = learner.received
        learner.scratch[MOVED] = {}

    def correct(self, learner: Learner, parameters: Parameters) -> None:
        """Note which shared parameters the steps move; gradients stay as they are."""
        learner.scratch[MOVED].update(parameters)

    def end(self, learner: Learner) -> None:
        """Put small changes back, in place."""
        with torch.no_grad():
            for name, parameter in learner.scratch[MOVED].items():
                old = learner.received[name]
                is_small = (parameter - old).abs() <= self.threshold
                parameter.copy_(torch.where(is_small, old, parameter))
