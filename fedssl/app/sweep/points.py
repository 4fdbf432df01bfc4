"""The points of a sweep: the experiment and settings of each run, its folder, and how far it has come."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedssl.app.sweep.axes import Assignment, settings_name
from fedssl.core.errors import InputError
from fedssl.experiment.effects import WITHOUT_EFFECT
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.settings import read_value
from fedssl.record.resume import refuse_changes
from fedssl.record.run_path import SUMMARY, has_begun
from fedssl.views.comparison.labels import in_short

State = Literal["finished", "begun", "new"]
"""States of a run: finished, begun and not finished, or not begun."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Args:
        experiment: The experiment of the run, seed included.
        settings: Values that ``--set`` gives to the run.
        varied: Keys of the settings that differ between runs.
    """

    experiment: Experiment
    settings: Assignment
    varied: frozenset[str]

    @property
    def name(self) -> str:
        """Path of the run directory below the sweep's folder: ``NAME/SETTINGS/seedN``."""
        named = tuple(each for each in self.settings if self._is_named(each[0]))
        parts = (self.experiment.name, settings_name(named), f"seed{self.experiment.seed}")
        return "/".join(part for part in parts if part)

    @property
    def label(self) -> str:
        """Name of the run in messages: the experiment's name and the settings that differ, without the seed."""
        told = self.difference
        return f"{self.experiment.name} ({told})" if told else self.experiment.name

    @property
    def difference(self) -> str:
        """The settings that differ between runs, as people say them: ``alpha 0.2, supervised``."""
        varied = {key: read_value(text) for key, text in self.settings if key in self.varied}
        return in_short({key: json.dumps(value, default=str) for key, value in varied.items()})

    def _is_named(self, key: str) -> bool:
        """Say whether a setting is part of the name.

        A setting with one value for all runs is part of the name, unless it has no effect on results and may change.
        """
        return key in self.varied or key.partition(".")[0] not in WITHOUT_EFFECT


def names_of_rows(points: Sequence[Point]) -> list[str]:
    """Return a different name for each run, with as little as tells the runs apart: ``alpha 0.2, supervised, seed 1``."""
    several_names = len({point.experiment.name for point in points}) > 1
    several_seeds = len({point.experiment.seed for point in points}) > 1
    names = []
    for point in points:
        parts = [point.experiment.name] if several_names else []
        parts += [point.difference] if point.difference else []
        parts += [f"seed {point.experiment.seed}"] if several_seeds else []
        names.append(", ".join(parts) or point.experiment.name)
    return names if len(set(names)) == len(names) else [point.name for point in points]


def state_of(path: Path) -> State:
    """Return how far the run in a folder has come."""
    if (path / SUMMARY).exists():
        return "finished"
    return "begun" if has_begun(path) else "new"


def refuse_twins(points: Iterable[Point]) -> None:
    """Raise `InputError` if two runs would be recorded in one folder."""
    names = [point.name for point in points]
    for name in names:
        if names.count(name) > 1:
            raise InputError("name", f"two runs are called {name}", "rename an experiment")


def refuse_changed(points: Sequence[Point], out: Path) -> None:
    """Raise `InputError` if a run is recorded with other settings than its point has now."""
    for point in points:
        if has_begun(out / point.name):
            remedy = "put them back, or name another folder for the sweep"
            refuse_changes(out / point.name, point.experiment, field="--out", remedy=remedy)


def count_runs(points: Sequence[Point]) -> str:
    """Return how many runs there are, as people say it."""
    return f"{len(points)} run{'' if len(points) == 1 else 's'}"
