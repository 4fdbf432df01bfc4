"""A method that fails at one process of a client's team."""

from pathlib import Path

from pydantic import Field

from fedssl.methods.base import Learner
from fedssl.training.team import current_team
from tests.plugins.raising import Raising


class HalfBroken(Raising):
    """Use up the memory of one process of the team, unless a file tells that this has happened before."""

    rank: int = Field(1, description="the process that fails")
    marker: Path | None = Field(None, description="the file; none: fail each time")

    def begin(self, learner: Learner) -> None:
        if current_team().rank != self.rank or (self.marker and self.marker.exists()):
            return
        if self.marker:
            self.marker.touch()
        raise MemoryError("no memory for this process")
