"""The state from which a run can go on after a finished round.

Random streams need no state, because they derive from seed, purpose, round and client.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fedssl.core.arrays import NamedArrays
from fedssl.record.global_model import GlobalModel
from fedssl.record.rows import RoundRow


class KeptStates(Protocol):
    """What clients keep after a finished round."""

    @property
    def round(self) -> int:
        """The last finished round."""

    def versions(self) -> Mapping[int, int]:
        """Return the round in which each client kept its state; clients that keep nothing are left out."""

    def kept(self, client: int) -> bytes:
        """Return the state that a client keeps, as bytes."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after a finished round; its contents are never changed afterwards.

    Args:
        rounds: The rows of all rounds so far; the last row says which phase the run is in.
        model: The global model.
        kept: What each part of the server keeps between rounds: named arrays, by the part's name.
        seconds: Time that the run has taken (seconds).
        clients: What clients keep; None if clients keep their states themselves, which the grid cannot read.
    """

    rounds: tuple[RoundRow, ...]
    model: GlobalModel
    kept: Mapping[str, NamedArrays]
    seconds: float
    clients: KeptStates | None

    @property
    def round(self) -> int:
        """The last finished round."""
        return len(self.rounds)

    @property
    def phase(self) -> int:
        """The phase of the last finished round, from 0."""
        return self.rounds[-1].phase

    @property
    def is_whole(self) -> bool:
        """Whether `clients` still holds the states of this snapshot's round; it does until the next round is over."""
        return self.clients is None or self.clients.round == self.round
