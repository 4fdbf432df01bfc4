"""What a contender is told, and what it notes while it runs."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedssl.experiment.experiment import Experiment


@dataclass(frozen=True)
class Job:
    """One run of one contender; travels as JSON.

    Args:
        contender: Its name.
        table: The experiment without rounds and engine.
        rounds: To run.
        workers: For those that run in parallel.
        began: `time.monotonic` just before the process was started.
        result: Where to write the outcome.
        weights: Where to save the final model; none: nowhere.
    """

    contender: str
    table: dict[str, Any]
    rounds: int
    workers: int
    began: float
    result: str
    weights: str | None = None

    def experiment(self, **engine: Any) -> Experiment:
        """Return the experiment, on some engine.

        Raises:
            InputError: The engine cannot be set up like that.
        """
        return Experiment.from_dict(self.table | {"rounds": self.rounds, "engine": engine})


@dataclass
class Stopwatch:
    """Notes the end of every round, and the memory of this process and of all below it.

    Args:
        job: Says when the last round ends.
        ends: Seconds since the process began.
        driver_mib: Peak resident memory of the process that runs the server.
        all_mib: The sum of the peaks of it and of its workers; pages they share count for each.
    """

    job: Job
    ends: list[float] = field(default_factory=list)
    driver_mib: float = 0.0
    all_mib: float = 0.0

    def round_ended(self) -> None:
        """Note the time; after the last round also the memory."""
        self.ends.append(time.monotonic() - self.job.began)
        if self.in_last_round(over=True):
            self.note_memory()

    def in_last_round(self, *, over: bool = False) -> bool:
        """Say whether the last round runs, or is over."""
        return len(self.ends) == self.job.rounds - (not over)

    def note_memory(self, root: int | None = None) -> None:
        """Note peaks; to be called while workers live.

        Args:
            root: The process that started all; this one unless told otherwise.
        """
        self.driver_mib = _peak_mib(os.getpid())
        self.all_mib = max(self.all_mib, sum(map(_peak_mib, _family(root or os.getpid()))))


def _peak_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return 0.0
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peaks[0]) / 1024 if peaks else 0.0


def _family(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    family = [root]
    for pid in family:
        family += children.get(pid, [])
    return family
