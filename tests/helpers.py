"""Small experiments for tests."""

import hashlib
from pathlib import Path
from typing import Any

from clients.local_data import simulated_federation
from fedssl.config import Experiment, merge
from fedssl.data.federation import Federation

SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 2,
    "data": {"source": "digits", "train_size": 400},
    "federation": {"clients": 6, "sample": 3},
    "model": {"kind": "cnn", "widths": [8, 16], "hidden": 16},
    "method": {"kind": "fixmatch", "unlabeled_ratio": 2, "threshold": 0.3},
    "train": {"local_steps": 2, "batch_size": 8},
    "engine": {"kind": "serial"},
}


def small_experiment(**overrides: Any) -> Experiment:
    """Return a federation that trains in a moment, with sections laid over it."""
    return Experiment.from_dict(merge(SMALL, overrides))


def small_toml(path: Path, **overrides: Any) -> Path:
    """Write such an experiment to a file."""
    path.write_text(small_experiment(**overrides).to_toml(), encoding="utf-8")
    return path


def federation_of(experiment: Experiment) -> Federation:
    return simulated_federation(experiment)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def broken_client() -> tuple[int, int]:
    """Return (client, size) of one whose number of images no other has: how `plugins.raising` knows it."""
    sizes = federation_of(small_experiment()).sizes.tolist()
    size = next(size for size in sizes if sizes.count(size) == 1)
    return sizes.index(size), size
