"""Tracked runs for tests."""

from pathlib import Path

import pandas as pd

from fedssl.experiment.experiment import Experiment
from fedssl.record.rows import Observer
from fedssl.views.trackers.tracking import tracking
from tests import resuming


def refuse_incidents(round: int, what: str) -> None:
    raise AssertionError(what)


def run(experiment: Experiment, path: Path, *observers: Observer) -> None:
    """Run an experiment from its beginning, tracked as it says."""
    with tracking(experiment, path, refuse_incidents) as trackers:
        resuming.run(experiment, path, *trackers, *observers)


def go_on(experiment: Experiment, path: Path, *observers: Observer) -> None:
    """Go on with a run, tracked as the experiment says."""
    with tracking(experiment, path, refuse_incidents) as trackers:
        resuming.go_on(experiment, path, *trackers, *observers)


def recorded(path: Path) -> dict[str, dict[int, float]]:
    """Return every column of a run's rounds by round, without what has no value: what a tracker should have."""
    table = pd.read_csv(path / "rounds.csv", index_col="round").drop(
        columns=["method", "classes_unnamed"]
    )
    columns = {name: table[name].dropna().astype(float).to_dict() for name in table}
    return {name: values for name, values in columns.items() if values}
