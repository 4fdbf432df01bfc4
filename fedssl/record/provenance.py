"""What a run ran on: machine, versions, and who held which image."""

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedssl.data.federation import Federation
from fedssl.engine.plan import available_cores
from fedssl.errors import InputError

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


def partition_table(federation: Federation) -> pd.DataFrame:
    """Return one line a training image.

    Its row and client (-1: at the server, -2: held back for validation), its true class (-1: unknown), whether it is
    labeled, and with what label.
    """
    return pd.DataFrame(
        {
            "row": np.arange(len(federation.owner)),
            "client": federation.owner,
            "label": federation.data.train.labels,
            "labeled": federation.labeled,
            "given": federation.given,
        }
    )


def check_partition(file: Path, federation: Federation) -> None:
    """Raise `InputError` if others hold the images now, or there are others."""
    if file.exists() and not pd.read_parquet(file).equals(partition_table(federation)):
        raise InputError(
            "--resume",
            f"the images, or who holds them, are no longer those of {file}",
            "put the data back, or run without --resume to begin anew",
        )
