"""A method with state at clients that says when it trains in the second and the third round, and takes its time."""

import time
from pathlib import Path

from pydantic import Field

from fedssl.methods.base import Learner
from fedssl.methods.temporal_ensembling import TemporalEnsembling

SECONDS = 3.0


class Slow(TemporalEnsembling):
    """Leave a file when a client begins with one of the two rounds for the first time, and wait."""

    marks: Path | None = Field(None, description="folder of the files; none: nothing is said")

    def begin(self, learner: Learner) -> None:
        round = learner.progress.round
        if self.marks is None or round not in (2, 3):
            return
        mark = self.marks / f"{round}-{len(learner.shard)}"
        if not mark.exists():
            mark.touch()
            time.sleep(SECONDS)
