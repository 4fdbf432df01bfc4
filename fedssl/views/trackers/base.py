"""The interface of a tracker: a folder or a service of another project that shows many runs side by side.

`Tracker.open` begins a new run at the tracker or continues an earlier run. The `TrackedRun` that it returns is told of
every round and of the end. A tracker may raise any exception: `fedssl.views.trackers.tracking` reports the first
exception, and the run goes on without its tracker.
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
"""The ways in which a run can end."""


@dataclass(frozen=True)
class Facts:
    """The facts that a tracker is told when a run begins.

    Args:
        name: Name of the experiment; all its seeds share the name.
        seed: Seed of the experiment.
        directory: Absolute path of the run directory.
        settings: All settings of the experiment, defaults included.
    """

    name: str
    seed: int
    directory: Path
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, experiment: Experiment, directory: Path) -> "Facts":
        """Return the facts of an experiment that is recorded in the run directory `directory`."""
        return cls(experiment.name, experiment.seed, directory.absolute(), experiment.to_dict())

    @property
    def title(self) -> str:
        """Title of the run in the tracker's list of runs."""
        return f"{self.name} seed {self.seed}"

    @property
    def tags(self) -> dict[str, str]:
        """Short texts by which a user finds the run in the tracker."""
        return {"seed": str(self.seed), "fedssl": __version__}


class TrackedRun(ABC):
    """One run at a tracker.

    Args:
        id: The tracker's name for the run; `Tracker.open` finds the run by it when the run is resumed.
    """

    def __init__(self, id: str) -> None:
        self.id = id

    @abstractmethod
    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a round; a round that the tracker already has must not appear twice.

        Args:
            round: Number of the round, from 1. Rounds come in order; a resumed run logs all rounds again.
            values: The numbers of the round's row in ``rounds.csv`` by column name, without NaN.
        """

    @abstractmethod
    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Mark how the run ended, and release all resources.

        Args:
            status: How the run ended.
            summary: The numbers of the run's summary by name, ``summary/NAME``; empty if the run is not finished.
            files: Small files of the run's record that the tracker may keep; empty if the run is not finished.
        """


class Tracker(Plugin):
    """The ``[tracker]`` section: where a run is tracked beside its record. A tracker cannot change a result.

    Example:
        A member defines `open`, which returns a `TrackedRun` with `log` and `end`. This tracker prints.

        >>> class PrintedRun(TrackedRun):
        ...     def log(self, round, values):
        ...         print(f"round {round}: {values}")
        ...
        ...     def end(self, status, summary, files):
        ...         print(status)
        >>> class Printer(Tracker):
        ...     def open(self, facts, id):
        ...         return PrintedRun(id or facts.title)
        >>> run = Printer().open(Facts("digits", 7, Path("/runs/digits"), {}), None)
        >>> run.log(1, {"ema_accuracy": 0.5})
        round 1: {'ema_accuracy': 0.5}
        >>> run.end("finished", {}, [])
        finished
    """

    is_abstract: ClassVar[bool] = True

    def check(self) -> None:
        """Raise `InputError` if the tracker cannot work here, such as when its library is missing.

        By default nothing is checked.
        """

    @abstractmethod
    def open(self, facts: Facts, id: str | None) -> TrackedRun:
        """Return the run at the tracker.

        Args:
            facts: The facts of the run.
            id: The `TrackedRun.id` of the run to resume; None begins a new run.
        """


def tracker_of(experiment: Experiment) -> Tracker | None:
    """Return the tracker of an experiment; None if the experiment has no tracker.

    Raises:
        InputError: The section ``[tracker]`` names a plug-in that is not a tracker.
    """
    tracker = experiment.tracker
    if tracker is not None and not isinstance(tracker, Tracker):
        raise InputError("tracker.kind", f"{tracker.kind!r} is not a tracker")
    return tracker


def refuse_tracker(experiment: Experiment) -> None:
    """Raise `InputError` if an experiment to deploy has a tracker: a deployment's server cannot use trackers."""
    if experiment.tracker is not None:
        raise InputError(
            "tracker",
            "works with fedssl run only; a deployment has no tracker",
            "--set tracker=unset",
        )


def check_tracker(experiment: Experiment) -> None:
    """Raise `InputError` if the tracker of an experiment cannot work here."""
    tracker = tracker_of(experiment)
    if tracker is not None:
        tracker.check()
