"""The messages between a sweep and its processes.

They have a module of their own because pickled messages name the module of their class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """A run that the sweep hands to a process.

    Args:
        experiment: The experiment, as `Experiment.to_dict` returns it.
        folder: The run directory, which may hold a stopped run.
        label: Name of the run in messages to the user.
    """

    experiment: Mapping[str, Any]
    folder: Path
    label: str


@dataclass(frozen=True)
class Began:
    """A run of `rounds` rounds begins, or is resumed after `done` rounds."""

    rounds: int
    done: int = 0


@dataclass(frozen=True)
class RoundDone:
    """A round is finished and recorded.

    Args:
        round: Number of the round, from 1.
        ema_accuracy, pseudo_label_accuracy: Shares as in `fedssl.record.rows.RoundRow`; NaN if not known.
    """

    round: int
    ema_accuracy: float
    pseudo_label_accuracy: float


@dataclass(frozen=True)
class Said:
    """A text that the user should see; the run goes on."""

    text: str


@dataclass(frozen=True)
class Ended:
    """A run is finished; `line` sums it up."""

    line: str


@dataclass(frozen=True)
class Failed:
    """A run stopped before its end; `reason` holds all that is known about the cause."""

    reason: str


Message = Began | RoundDone | Said | Ended | Failed
