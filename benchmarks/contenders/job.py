"""The job that a contender is given, and the stopwatch that it uses."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedssl.experiment.experiment import Experiment


@dataclass(frozen=True)
class Job:
    """One run of one contender; it is passed to the process as JSON.

    Args:
        contender: Name of the contender.
        table: The experiment without rounds and engine.
        rounds: Number of rounds.
        workers: Number of workers of a contender that runs in parallel.
        began: `time.monotonic` just before the start of the process, in seconds.
        result: File for the outcome.
        weights: File for the final model; None: the model is not saved.
    """

    contender: str
    table: dict[str, Any]
    rounds: int
    workers: int
    began: float
    result: str
    weights: str | None = None

    def experiment(self, **engine: Any) -> Experiment:
        """Return the experiment with the given engine settings.

        Raises:
            InputError: The settings of the engine are not valid.
        """
        return Experiment.from_dict(self.table | {"rounds": self.rounds, "engine": engine})


@dataclass
class Stopwatch:
    """Note the end of every round, and the memory of this process and its descendants.

    Args:
        job: The job, which names the number of rounds and the start of the process.
        ends: Seconds from the process's start to the end of each round.
        driver_mib: Peak resident memory (MiB) of the process that runs the server.
        all_mib: Sum of the peaks (MiB) of this process and its workers; shared pages count once per process.
    """

    job: Job
    ends: list[float] = field(default_factory=list)
    driver_mib: float = 0.0
    all_mib: float = 0.0

    def round_ended(self) -> None:
        """Note the time; after the last round, note the memory too."""
        self.ends.append(time.monotonic() - self.job.began)
        if self.in_last_round(over=True):
            self.note_memory()

    def in_last_round(self, *, over: bool = False) -> bool:
        """Return whether the last round is running, or with `over`, whether it is over."""
        return len(self.ends) == self.job.rounds - (not over)

    def note_memory(self, root: int | None = None) -> None:
        """Note the peaks of memory; call this while the workers live.

        Args:
            root: Process whose descendants count; None: this process.
        """
        self.driver_mib = _peak_mib(os.getpid())
        self.all_mib = max(self.all_mib, sum(map(_peak_mib, _family(root or os.getpid()))))


def _peak_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # the process has ended meanwhile
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
