"""What a sweep and its processes tell each other; a module of its own, for the names of classes travel too."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """A run that a process is given.

    Args:
        experiment: As `Experiment.to_dict` writes it.
        folder: Where it is recorded, or has been until it was stopped.
        label: What it is called.
    """

    experiment: Mapping[str, Any]
    folder: Path
    label: str


@dataclass(frozen=True)
class Began:
    """A run begins, or goes on after so many rounds."""

    rounds: int
    done: int = 0


@dataclass(frozen=True)
class RoundDone:
    """A round is over, and recorded.

    Args:
        round: From 1.
        ema_accuracy, pseudo_label_accuracy: As in `fedssl.record.rows.RoundRow`; NaN where unknown.
    """

    round: int
    ema_accuracy: float
    pseudo_label_accuracy: float


@dataclass(frozen=True)
class Said:
    """Something that who watches should know; it ends nothing."""

    text: str


@dataclass(frozen=True)
class Ended:
    """A run came to its end, of which this is one line."""

    line: str


@dataclass(frozen=True)
class Failed:
    """A run stopped before its end, with all that is known why."""

    reason: str


Message = Began | RoundDone | Said | Ended | Failed
