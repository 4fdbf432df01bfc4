"""The provenance of a run: its machine, its software versions, and which client held which image."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedssl.core.errors import InputError
from fedssl.core.machine import available_cores
from fedssl.data.client_names import client_names
from fedssl.data.federation import Federation
from fedssl.data.images import Images
from fedssl.data.shard import ImageSpec
from fedssl.experiment.experiment import Experiment
from fedssl.models.weights_file import find_weights
from fedssl.record.description import describe
from fedssl.record.judges import judges_of
from fedssl.record.run_path import ENVIRONMENT

VERSIONED = ("fedssl", "flwr", "ray", "torch", "torchvision", "numpy", "scipy")

FOLDER = "folder"
"""``environment.json`` has the current folder under this name, below which the relative paths of the experiment lie."""

TOKEN = "--token"

FINGERPRINTED = 500
"""The checksum of a data set covers this many of its held-out images."""


def environment() -> dict[str, Any]:
    """Return the machine, the software versions, the command and the current folder of this process."""
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": without_tokens(sys.argv),
        FOLDER: str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": available_cores(),
        "versions": versions,
    }


def recorded_environment(run: Path) -> dict[str, Any]:
    """Return what the record of a run says about its environment; nothing if the file is missing or damaged."""
    try:
        found = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def initial_weights(experiment: Experiment) -> dict[str, Any]:
    """Return the file with whose weights a run begins, and the file's checksum; empty if the seed draws the weights."""
    model = experiment.plans[0].model
    if model.weights is None:
        return {}
    file = find_weights(model.weights, model.kind)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"initial_weights": {"file": str(file.absolute()), "sha256": digest}}


def without_tokens(arguments: Sequence[str]) -> list[str]:
    """Return a command without the token that Flower passes to a server app as an argument (flwr 1.41): records are shared."""
    after = ["", *arguments]
    shown = [
        "..." if before == TOKEN else one for before, one in zip(after, arguments, strict=False)
    ]
    return [f"{TOKEN}=..." if one.startswith(f"{TOKEN}=") else one for one in shown]


def data_facts(experiment: Experiment, federation: Federation) -> dict[str, Any]:
    """Return facts about the images: enough to build the run's network without them, and to recognize them later.

    Args:
        experiment: The experiment that runs.
        federation: The federation that it runs on.
    """
    data, held_out = federation.data, federation.held_out
    return {
        "description": describe(experiment, federation),
        "source": experiment.data.kind,
        "evaluated_on": federation.held_out_name,
        "judged_by": judges_of(experiment, federation),
        "class_names": data.class_names,
        **dataclasses.asdict(data.spec),
        "num_train": len(data.train),
        "num_labeled": int(federation.labeled.sum()),
        "num_held_out": len(held_out),
        "client_names": _client_names(experiment, federation),
        "held_out_sha256": fingerprint(held_out),
        "notes": data.notes,
        "remarks": data.remarks,
    }


def _client_names(experiment: Experiment, federation: Federation) -> list[str]:
    """Return what the clients are called; empty if they have numbers only, or if nobody knows whose images are whose."""
    section = experiment.federation
    names = [] if section.private else client_names(federation, section.partition)
    return [] if names == list(map(str, range(len(names)))) else names


def spec_of(facts: Mapping[str, Any]) -> ImageSpec:
    """Return the properties that all images of a run share, from the facts that `data_facts` gave."""
    return ImageSpec(
        shape=tuple(facts["shape"]),
        num_classes=facts["num_classes"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        flips=facts["flips"],
    )


def fingerprint(images: Images) -> str:
    """Return a checksum of all labels and of `FINGERPRINTED` evenly spread images.

    Reading every image of a large data set would take minutes.
    """
    digest = hashlib.sha256(images.labels.tobytes())
    if len(images):
        rows = np.linspace(0, len(images) - 1, FINGERPRINTED).astype(np.int64)
        digest.update(images.read(rows).tobytes())
    return digest.hexdigest()


def partition_table(federation: Federation) -> bytes:
    """Return a CSV file with one line for each training image.

    The columns are the image's row, its client (-1: the server, -2: held back for validation, -3: not used, because
    clients bring private data), its true class (-1: unknown), whether it is labeled, and the given label. Private data
    is not recorded, except its counts in ``clients.csv``.
    """
    columns: dict[str, npt.NDArray[Any]] = {
        "row": np.arange(len(federation.owner)),
        "client": federation.owner,
        "label": federation.data.train.labels,
        "labeled": federation.labeled,
        "given": federation.given,
    }
    lines = zip(*(map(str, column.tolist()) for column in columns.values()), strict=True)
    return "\n".join([",".join(columns), *map(",".join, lines), ""]).encode()


def check_partition(file: Path, federation: Federation) -> None:
    """Raise `InputError` if the images, or which clients hold them, differ from those in a partition file."""
    if file.exists() and file.read_bytes() != partition_table(federation):
        raise InputError(
            "--resume",
            f"the images, or which clients hold them, are no longer those of {file}",
            "put the data back, or run without --resume to begin anew",
        )
