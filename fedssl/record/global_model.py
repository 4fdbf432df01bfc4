"""The global model: the server's weights, their average, and the methods' state after a round."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedssl.core.arrays import NamedArrays


@dataclass(frozen=True)
class GlobalModel:
    """The global model after some round.

    Args:
        arrays: Weights that clients share, by name.
        ema: The moving average of these weights over the rounds.
        state: The part of the method's state that the server keeps, by ``SLOT/NAME``.
    """

    arrays: NamedArrays = field(default_factory=dict)
    ema: NamedArrays = field(default_factory=dict)
    state: NamedArrays = field(default_factory=dict)

    def parts(self) -> Mapping[str, NamedArrays]:
        """Return the three parts of the model, by the names of the files that hold them."""
        return {"model": self.arrays, "ema": self.ema, "state": self.state}
