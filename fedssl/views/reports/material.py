"""The material of a report: a run's record, read without pandas or other table libraries."""

import csv
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedssl.core.rng import SERVER
from fedssl.experiment.experiment import Experiment
from fedssl.record.lines import read_rows
from fedssl.record.rows import NAN, STATUSES, ClassRow, ClientRow, NumberRow, RoundRow
from fedssl.record.run_path import (
    CLASSES,
    CLIENTS,
    EVENTS,
    NUMBERS,
    PARTITION,
    ROUNDS,
    SUMMARY,
    is_running,
)
from fedssl.views.reports.charts import is_out_of_range
from fedssl.views.run import Run, naming_damaged_files

Ints = npt.NDArray[np.int64]

Row = TypeVar("Row")


@dataclass(frozen=True)
class Material:
    """A run's record.

    Args:
        path: The run directory.
        experiment: The experiment that ran.
        data: Facts about the images; see `fedssl.record.provenance.data_facts`.
        environment: Machine, versions and command of the run.
        rounds: One row per finished round.
        clients: One row per client and finished round.
        classes: Counts of pseudo-labels, one row per round and class; empty if they were not counted.
        numbers: Numbers that methods and the strategy recorded; empty if they recorded none.
        owner, label, given: Client, true class and given label (-1: none) of every training image, (N,).
        events: Events of the run, oldest first.
        summary: Summary of a finished run; None if the run is not finished.
        evaluation: A closer look at the models; None if no closer look was taken.
        is_running: Whether the run goes on at this moment.
        out_of_range: One sentence for each number of the record that is too large to be true. NaN or 0 replaces the
            number.
    """

    path: Path
    experiment: Experiment
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    rounds: Sequence[RoundRow]
    clients: Sequence[ClientRow]
    classes: Sequence[ClassRow]
    numbers: Sequence[NumberRow]
    owner: Ints
    label: Ints
    given: Ints
    events: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None
    is_running: bool = False
    out_of_range: Sequence[str] = ()

    @property
    def judges(self) -> Sequence[str]:
        """How the model of each phase was judged; empty in an older record."""
        return [" ".join(str(judge).split()) for judge in self.data.get("judged_by", ())]

    @property
    def client_names(self) -> Sequence[str]:
        """The name of each client in charts: its number, and the site or the column's value from which its images come."""
        section = self.experiment.federation
        recorded = self.data.get("client_names", ())  # an older record names no clients
        if len(recorded) == section.clients:
            return [" ".join(str(name).split()) for name in recorded]
        numbers = map(str, range(section.clients))
        if section.sites is None:
            return list(numbers)
        return [f"{number} ({site})" for number, site in zip(numbers, section.sites, strict=True)]

    @property
    def num_unlabeled(self) -> int:
        """Number of images without a label at the clients; 0 if clients bring private data, which nobody else counts."""
        return int(((self.owner >= 0) & (self.given < 0)).sum())

    @property
    def num_hidden(self) -> int:
        """Number of images at the clients that have no label there, and whose true class the simulator knows."""
        return int(((self.owner >= 0) & (self.given < 0) & (self.label >= 0)).sum())

    @property
    def class_names(self) -> Sequence[str]:
        """The name of each class, on one line because Vega accepts no line separator in a name."""
        return [" ".join(str(name).split()) for name in self.data["class_names"]]


def read_material(run: Run, evaluation: Mapping[str, Any] | None) -> Material:
    """Read a run's record.

    Args:
        run: The run, which may still go on.
        evaluation: A closer look at the run's models; None if no closer look was taken.

    Raises:
        InputError: A file of the record is missing or damaged.
    """
    wrong: list[str] = []
    rounds = _within_range(ROUNDS, run.round_rows, wrong)
    # A round is recorded after its clients: rows beyond the last recorded round belong to a round in the making.
    clients = _within_range(CLIENTS, _rows(run, CLIENTS, ClientRow), wrong)
    classes = _within_range(CLASSES, _rows(run, CLASSES, ClassRow), wrong)
    has_numbers = (run.path / NUMBERS).exists()  # a record of version 0.1.0.dev has none
    numbers = _within_range(NUMBERS, _rows(run, NUMBERS, NumberRow) if has_numbers else (), wrong)
    num_clients, num_classes = run.experiment.federation.clients, len(run.data["class_names"])
    _check(run, CLIENTS, (row.client for row in clients), range(num_clients))
    _check(run, CLIENTS, (row.status for row in clients), STATUSES)
    _check(run, NUMBERS, (row.client for row in numbers), range(SERVER, num_clients))
    _check(run, CLASSES, (row.label for row in classes), range(num_classes))
    summary = dict(run.summary) if run.is_finished else None
    for key, value in (summary or {}).items():
        if isinstance(value, int | float) and is_out_of_range(value):
            assert summary is not None
            summary[key] = None
            wrong.append(f"{SUMMARY}: {key} is {_short(value)}")
    owner, label, given = _partition(run)
    return Material(
        path=run.path,
        experiment=run.experiment,
        data=run.data,
        environment=run.environment,
        rounds=rounds,
        clients=[row for row in clients if row.round <= len(rounds)],
        classes=[row for row in classes if row.round <= len(rounds)],
        numbers=[row for row in numbers if row.round <= len(rounds)],
        owner=owner,
        label=label,
        given=given,
        events=_events(run),
        summary=summary,
        evaluation=evaluation,
        is_running=summary is None and is_running(run.path),
        out_of_range=wrong,
    )


def _rows(run: Run, name: str, kind: type[Row]) -> Sequence[Row]:
    with naming_damaged_files(run.path / name):
        return read_rows(run.path / name, kind)


def _check(run: Run, name: str, values: Iterable[object], known: Container[object]) -> None:
    """Raise `InputError` if a table names a client, a class or a status that does not exist."""
    with naming_damaged_files(run.path / name):
        false = next((value for value in values if value not in known), None)
        if false is not None:
            raise ValueError(f"it names {str(false)[:20]!r}, which does not exist")


def _within_range(name: str, rows: Sequence[Row], wrong: list[str]) -> Sequence[Row]:
    """Return rows with all numbers out of range replaced; add one sentence per replaced number to `wrong`."""
    return [_row_within_range(name, row, wrong) for row in rows]


def _row_within_range(name: str, row: Row, wrong: list[str]) -> Row:
    found = {
        key: value
        for key, value in vars(row).items()
        if isinstance(value, int | float) and is_out_of_range(value)
    }
    if not found:
        return row
    where = f"{name}, round {vars(row)['round']}"
    wrong += (f"{where}: {key} is {_short(value)}" for key, value in found.items())
    instead = {key: NAN if isinstance(value, float) else 0 for key, value in found.items()}
    return type(row)(**(vars(row) | instead))


def _short(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:20]


def _partition(run: Run) -> tuple[Ints, Ints, Ints]:
    with (
        naming_damaged_files(run.path / PARTITION),
        (run.path / PARTITION).open(encoding="utf-8", newline="") as file,
    ):
        names = next(csv.reader(file))
        columns = [names.index(name) for name in ("client", "label", "given")]
        numbers = np.loadtxt(file, delimiter=",", dtype=np.int64, usecols=columns, ndmin=2)
    return numbers[:, 0], numbers[:, 1], numbers[:, 2]


def _events(run: Run) -> list[dict[str, Any]]:
    path = run.path / EVENTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
