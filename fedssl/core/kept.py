"""What lives from one round to the next: each part of a run says what it keeps, and takes it up again."""

import json
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedssl.core.arrays import NamedArrays


@runtime_checkable
class Keeps(Protocol):
    """A part of a run that keeps something between rounds.

    A checkpoint stores what `kept` returns. What is kept is replaced and never written to, so that nothing is copied.
    """

    def kept(self) -> NamedArrays:
        """Return all that the next round needs, as named arrays that are not written to afterwards."""

    def take_up(self, kept: NamedArrays) -> None:
        """Go on with what `kept` returned; the arrays must not be written to."""


def as_array(value: Any) -> npt.NDArray[np.uint8]:
    """Return what JSON can say as an array of bytes, for a part that keeps names or tables."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_array(array: npt.NDArray[Any]) -> Any:
    """Return what `as_array` was given."""
    return json.loads(array.tobytes())
