"""Any partitioner of Flower Datasets by name: ``kind = "flwr:DirichletPartitioner"``, its arguments under ``options``.

The behavior of Flower Datasets with too few examples is not changed. Its Dirichlet partitioner, for example, gives up
if it cannot give every client 10 examples (its default ``min_partition_size``).
"""

import importlib
import inspect
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
from pydantic import Field

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.data.images import Rows
from fedssl.data.partitions.base import Draws, Examples, Partition

KIND = "federation.partition.kind"
OPTIONS = "federation.partition.options"
LABEL = "label"
ROW = "row of the example"

NOT_OURS = {
    "IdToSizeFncPartitioner": "it needs a function, which a file cannot hold",
    "VerticalEvenPartitioner": "it splits columns, not images",
    "VerticalSizePartitioner": "it splits columns, not images",
}
"""Partitioners of Flower Datasets that cannot be used here, each with the reason."""

Scalar = float | int | str | bool


class Flwr(Partition):
    """Deal shuffled examples with one of Flower's partitioners.

    Three arguments of the partitioner have defaults that `options` can override: ``num_partitions`` is the number of
    clients, ``seed`` is a number drawn from the law's stream, and ``partition_by`` is ``"label"``, the column of
    classes. The other columns are the columns of the data.
    """

    name: str = Field(description="name of a class in flwr_datasets.partitioner")
    options: dict[str, Scalar | list[Scalar | list[Scalar]]] = Field(
        default_factory=dict, description="keyword arguments of the partitioner"
    )

    def __hash__(self) -> int:
        """Return a hash of the name alone: the options are a dictionary, which has no hash."""
        return hash(self.name)

    @property
    def by_class(self) -> bool:  # type: ignore[override]
        """Whether the partitioner partitions by a column, and this column is the column of classes."""
        takes = inspect.signature(self._partitioner()).parameters
        return "partition_by" in takes and self.options.get("partition_by", LABEL) == LABEL

    def assign(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example; see `Partition.assign`.

        Raises:
            InputError: There is no such partitioner; or it cannot be used here; or it refuses its options or the
                examples; or it does not give every example to exactly one of K clients.
        """
        make = self._partitioner()
        options = self._options(make, num_clients, seed=int(draws.law.integers(2**32)))
        column = options.get("partition_by", LABEL)
        if column not in (LABEL, *examples.columns):
            problem = f"there is no column {column!r}"
            remedy = suggest_nearest(str(column), (LABEL, *examples.columns))
            raise InputError(f"{OPTIONS}.partition_by", problem, remedy)
        with self._refusals():
            partitioner = make(**options)
            partitioner.dataset = _table(examples, draws.deal.permutation(len(examples)))
            num_partitions = partitioner.num_partitions
        if num_partitions != num_clients:
            problem = f"{self.name} makes {num_partitions} parts for {num_clients} clients"
            raise InputError(OPTIONS, problem)
        with self._refusals():
            parts = [
                np.array(partitioner.load_partition(number)[ROW][:], dtype=np.int64)
                for number in range(num_partitions)
            ]
        rows = np.concatenate(parts)
        times_dealt = np.bincount(rows, minlength=len(examples))
        if (times_dealt != 1).any():
            problem = (
                f"{self.name} leaves out {(times_dealt == 0).sum()} of {len(examples)} images "
                f"and repeats {(times_dealt > 1).sum()}"
            )
            raise InputError(OPTIONS, problem, "every image must be dealt once")
        owner = np.empty(len(examples), dtype=np.int64)
        owner[rows] = np.repeat(np.arange(num_clients), [len(part) for part in parts])
        return owner

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Run the library's code without output, and turn every error that it raises into an `InputError`."""
        try:
            with _quiet():
                yield
        except Exception as error:
            raise InputError(OPTIONS, f"{self.name} refuses: {error}") from error

    def _partitioner(self) -> Any:
        """Return the class of Flower Datasets that `name` names."""
        try:
            with _quiet():
                library = importlib.import_module("flwr_datasets.partitioner")
        except ModuleNotFoundError as error:
            problem = f"{self.kind!r} needs Flower Datasets: {error}"
            raise InputError(KIND, problem, "pip install 'fedssl[flwr-datasets]'") from error
        if self.name in NOT_OURS:
            raise InputError(KIND, f"{self.name} cannot be used: {NOT_OURS[self.name]}")
        known = sorted(set(library.__all__) - {"Partitioner", *NOT_OURS})
        if self.name not in known:
            problem = f"Flower Datasets has no partitioner {self.name!r}"
            raise InputError(KIND, problem, suggest_nearest(self.name, known))
        return getattr(library, self.name)

    def _options(self, make: Any, num_clients: int, seed: int) -> dict[str, Any]:
        """Return all arguments of a partitioner: those in `options`, and those that follow from the experiment."""
        takes = inspect.signature(make).parameters
        for option in self.options:
            if option not in takes:
                problem = f"{self.name} does not take it"
                raise InputError(f"{OPTIONS}.{option}", problem, suggest_nearest(option, takes))
        ours = {"num_partitions": num_clients, "seed": seed, "partition_by": LABEL}
        options: dict[str, Any] = {name: ours[name] for name in ours if name in takes}
        options |= self.options
        for option, parameter in takes.items():
            if option not in options and parameter.default is parameter.empty:
                raise InputError(f"{OPTIONS}.{option}", f"is missing: {self.name} needs it")
        if "distribution_array" in options:  # the only argument that must be an array
            options["distribution_array"] = np.array(options["distribution_array"])
        return options


def _table(examples: Examples, rows: Rows) -> Any:
    """Return the given rows of the examples as a table of Hugging Face's ``datasets`` library, in the given order."""
    datasets = importlib.import_module("datasets")
    columns = {**examples.take(rows).columns, LABEL: examples.labels[rows], ROW: rows}
    return datasets.Dataset.from_dict(columns)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings, progress bars and other output of a library."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
