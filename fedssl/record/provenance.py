"""What a run ran on: machine, versions, and who held which image."""

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedssl.data.federation import Federation
from fedssl.engine.plan import available_cores
from fedssl.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

VERSIONED = ("fedssl", "flwr", "ray", "torch", "torchvision", "numpy", "pandas", "scikit-learn")


def environment() -> dict[str, Any]:
    """Return what a run ran on: machine, versions, command."""
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": available_cores(),
        "versions": versions,
    }


def partition_table(federation: Federation) -> "pa.Table":
    """Return one line a training image.

    Its row and client (-1: at the server, -2: held back for validation, -3: not used, for clients bring private data,
    of which nothing is recorded but the counts in ``clients.csv``), its true class (-1: unknown), whether it is
    labeled, and with what label.
    """
    import pyarrow as pa  # imported here: a check of an experiment needs none

    return pa.table(
        {
            "row": _column(np.arange(len(federation.owner))),
            "client": _column(federation.owner),
            "label": _column(federation.data.train.labels),
            "labeled": _column(federation.labeled),
            "given": _column(federation.given),
        }
    )


def as_parquet(table: "pa.Table") -> bytes:
    """Return a table as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def check_partition(file: Path, federation: Federation) -> None:
    """Raise `InputError` if others hold the images now, or there are others."""
    import pyarrow.parquet as pq

    if file.exists() and not pq.read_table(file).equals(partition_table(federation)):
        raise InputError(
            "--resume",
            f"the images, or who holds them, are no longer those of {file}",
            "put the data back, or run without --resume to begin anew",
        )


def _column(values: npt.NDArray[Any]) -> "pa.Array":
    """Return a column over an array's own memory; `pa.array` would import pandas to ask whether it is a series."""
    import pyarrow as pa

    packed = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else values
    memory = pa.py_buffer(np.ascontiguousarray(packed))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, memory])
