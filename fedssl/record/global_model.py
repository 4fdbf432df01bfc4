"""The global model: what the server has after a round."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedssl.core.arrays import NamedArrays


@dataclass(frozen=True)
class GlobalModel:
    """The global model after some round.

    Args:
        arrays: Weights that clients share, by name.
        ema: Their moving average over the rounds.
        state: What the server keeps of the method's state, by ``SLOT/NAME``.
    """

    arrays: NamedArrays = field(default_factory=dict)
    ema: NamedArrays = field(default_factory=dict)
    state: NamedArrays = field(default_factory=dict)

    def parts(self) -> Mapping[str, NamedArrays]:
        """Return its three parts by the names of the files that hold them."""
        return {"model": self.arrays, "ema": self.ema, "state": self.state}
