"""Everything that a run needs to go on after a finished round; random streams need nothing, for they derive from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fedssl.core.arrays import NamedArrays
from fedssl.record.global_model import GlobalModel
from fedssl.record.rows import RoundRow


class KeptStates(Protocol):
    """What clients kept when a round was over."""

    @property
    def round(self) -> int:
        """The last round that is over."""

    def versions(self) -> Mapping[int, int]:
        """Return, for every client that keeps something, the round that it kept it in."""

    def kept(self, client: int) -> bytes:
        """Return what a client keeps."""


@dataclass(frozen=True)
class Snapshot:
    """A run as it stands after a finished round; nothing in it is written to afterwards.

    Args:
        rounds: Every round so far; they say which phase the run is in.
        model: The global model.
        kept: What each part of the server keeps between rounds, by the part's name and its own names.
        seconds: Time that the run has taken.
        clients: What clients keep; None where that is not the grid's to know, and nothing is kept.
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
        """Its phase, from 0."""
        return self.rounds[-1].phase

    @property
    def is_whole(self) -> bool:
        """Whether what clients keep is still what it was; it is until another round is over."""
        return self.clients is None or self.clients.round == self.round
