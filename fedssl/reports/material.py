"""What a report is made of: a run's record, read without tables of any library."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedssl.config import Experiment
from fedssl.record.lines import read_rows
from fedssl.record.rows import ClassRow, ClientRow, RoundRow
from fedssl.record.run import Run, reading
from fedssl.record.run_path import CLASSES, CLIENTS, EVENTS, PARTITION

Ints = npt.NDArray[np.int64]

Row = TypeVar("Row")


@dataclass(frozen=True)
class Material:
    """A run's record.

    Args:
        experiment: What ran.
        data: What is known of the images; see `fedssl.record.provenance.data_facts`.
        environment: What it ran on.
        rounds: Every finished round.
        clients: Every client of every round.
        classes: Pseudo-labels by round and class, where they were counted.
        owner, label, given: Client, true class and the label it carries (-1: none) of every training image, (N,).
        events: What happened, oldest first.
        summary: What it summed up to; None while it goes on.
        evaluation: A closer look at the models; None where there is none.
    """

    experiment: Experiment
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    rounds: Sequence[RoundRow]
    clients: Sequence[ClientRow]
    classes: Sequence[ClassRow]
    owner: Ints
    label: Ints
    given: Ints
    events: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None

    @property
    def class_names(self) -> Sequence[str]:
        """One name a class, on one line: Vega takes no line separator in a name."""
        return [" ".join(str(name).split()) for name in self.data["class_names"]]


def read_material(run: Run, evaluation: Mapping[str, Any] | None) -> Material:
    """Read a run's record.

    Args:
        run: It may still go on.
        evaluation: A closer look at its models, if there is one.
    """
    rounds = run.round_rows
    # A round is recorded after its clients: what is beyond the last one belongs to a round that is being written.
    clients, classes = _rows(run, CLIENTS, ClientRow), _rows(run, CLASSES, ClassRow)
    owner, label, given = _partition(run)
    return Material(
        experiment=run.experiment,
        data=run.data,
        environment=run.environment,
        rounds=rounds,
        clients=[row for row in clients if row.round <= len(rounds)],
        classes=[row for row in classes if row.round <= len(rounds)],
        owner=owner,
        label=label,
        given=given,
        events=_events(run),
        summary=run.summary if run.is_finished else None,
        evaluation=evaluation,
    )


def _rows(run: Run, name: str, kind: type[Row]) -> Sequence[Row]:
    with reading(run.path / name):
        return read_rows(run.path / name, kind)


def _partition(run: Run) -> tuple[Ints, Ints, Ints]:
    with (
        reading(run.path / PARTITION),
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
