"""A method that fails at the second process of a client's team, once."""

from pathlib import Path

from fedssl.methods.base import Learner
from fedssl.training.team import current_team
from tests.plugins.raising import Raising


class HalfBroken(Raising):
    """Use up the memory of the team's second process, unless a file tells that this has happened before."""

    marker: Path

    def begin(self, learner: Learner) -> None:
        if current_team().rank == 1 and not self.marker.exists():
            self.marker.touch()
            raise MemoryError("no memory for this process")
