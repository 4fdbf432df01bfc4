"""What every tracker is: a folder or a service of somebody else's that shows many runs side by side.

A tracker opens a run, or one that was begun earlier and goes on; what it opens is told of every round and of the end.
It may raise whatever it likes: `fedssl.views.trackers.tracking` says so once and lets the run go on without it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedssl import __version__
from fedssl.core.errors import InputError
from fedssl.core.registry import Plugin
from fedssl.experiment.experiment import Experiment

Status = Literal["finished", "failed", "interrupted"]
"""How a run ended."""


@dataclass(frozen=True)
class Facts:
    """What a tracker is told of a run that begins.

    Args:
        name: The experiment's, which its seeds share.
        seed: The experiment's.
        directory: Where the run is recorded; absolute.
        settings: The experiment, every default written out.
    """

    name: str
    seed: int
    directory: Path
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, experiment: Experiment, directory: Path) -> "Facts":
        """Return those of an experiment that is recorded in a folder."""
        return cls(experiment.name, experiment.seed, directory.absolute(), experiment.to_dict())

    @property
    def title(self) -> str:
        """What the run is called among others."""
        return f"{self.name} seed {self.seed}"

    @property
    def tags(self) -> dict[str, str]:
        """Short texts to find it by."""
        return {"seed": str(self.seed), "fedssl": __version__}


class TrackedRun(ABC):
    """One run at a tracker.

    Args:
        id: By which the tracker finds it when it goes on.
    """

    def __init__(self, id: str) -> None:
        self.id = id

    @abstractmethod
    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Take note of a round; of one that it has already, nothing is there twice.

        Args:
            round: From 1; rounds come in order. A run that goes on begins again with the first.
            values: The numbers of its row in ``rounds.csv`` by column, without NaN.
        """

    @abstractmethod
    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Mark how the run ended, and let go of everything.

        Args:
            status: How.
            summary: What it sums up to, as ``summary/NAME``; empty if it is not finished.
            files: Small files of its record to keep beside it; none if it is not finished.
        """


class Tracker(Plugin):
    """The ``[tracker]`` section: where a run is tracked beside its record. It cannot change a result."""

    is_abstract: ClassVar[bool] = True

    def check(self) -> None:
        """Raise `InputError` if it is known not to work here, such as for want of a library; by default it is not."""

    @abstractmethod
    def open(self, facts: Facts, id: str | None) -> TrackedRun:
        """Return the run at the tracker.

        Args:
            facts: What runs.
            id: Of the run that goes on; None begins one.
        """


def tracker_of(experiment: Experiment) -> Tracker | None:
    """Return the tracker of an experiment, if it has one.

    Raises:
        InputError: The section names a plugin that is no tracker.
    """
    tracker = experiment.tracker
    if tracker is not None and not isinstance(tracker, Tracker):
        raise InputError("tracker.kind", f"{tracker.kind!r} is not a tracker")
    return tracker


def refuse_tracker(experiment: Experiment) -> None:
    """Raise `InputError` if an experiment that is to be deployed has a tracker: a deployment's server knows none."""
    if experiment.tracker is not None:
        raise InputError(
            "tracker", "is for fedssl run; a deployment has none", "--set tracker=unset"
        )


def check_tracker(experiment: Experiment) -> None:
    """Raise `InputError` if the tracker of an experiment is known not to work here."""
    tracker = tracker_of(experiment)
    if tracker is not None:
        tracker.check()
