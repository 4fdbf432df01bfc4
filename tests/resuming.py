"""Helpers for tests of resuming: the files that a run leaves, and ways to stop and resume a run."""

import shutil
from pathlib import Path

import pandas as pd

from fedssl.clients.client_app import app
from fedssl.clients.fused_app import train_together
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.experiment.experiment import Experiment
from fedssl.record.checkpoint import Found
from fedssl.record.resume import directory_to_resume
from fedssl.record.rows import Observer, Outcome, RoundEnd
from fedssl.record.run_directory import TABLES, RunDirectory
from fedssl.server.app import serve
from tests.helpers import sha256


class Stop(Exception):
    """Ends a run on purpose."""


class Stopper(Observer):
    """Raise at the end of a round."""

    def __init__(self, round: int, error: BaseException | None = None) -> None:
        self.round = round
        self.error = error or Stop()

    def round_ended(self, end: RoundEnd) -> None:
        if end.row.round == self.round:
            raise self.error


class Copier(Observer):
    """Copy the run directory after every round: as a process that is killed then would leave it."""

    def __init__(self, path: Path, to: Path) -> None:
        self.path = path
        self.to = to

    def round_ended(self, end: RoundEnd) -> None:
        shutil.copytree(self.path, self.to / str(end.row.round))


def bits(path: Path) -> dict[str, object]:
    """Return everything that a run leaves and that must not depend on where it was stopped."""
    left: dict[str, object] = {p.name: sha256(p) for p in sorted(path.glob("*.safetensors"))}
    for name in TABLES:
        table = pd.read_csv(path / name, dtype=str)
        left[name] = table.drop(columns="seconds", errors="ignore").to_csv()
    return left


def run(experiment: Experiment, path: Path, *observers: Observer, clients: int = 6) -> Outcome:
    """Run an experiment from its beginning."""
    return serve(
        experiment, SerialGrid(Apps(app, train_together), clients), [RunDirectory(path), *observers]
    )


def go_on(
    experiment: Experiment, path: Path, *observers: Observer, memory: int | None = None
) -> Found:
    """Go on with a run, and return what it went on from."""
    directory = directory_to_resume(experiment, path)
    found = directory.load()
    grid = SerialGrid(Apps(app, train_together), experiment.federation.clients)
    if memory is not None:
        grid.states.memory = memory
    serve(experiment, grid, [directory, *observers], found.snapshot)
    return found
