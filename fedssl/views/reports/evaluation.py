"""A closer look at the two global models than every round takes: by class, by confidence, by client."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.files import write_atomically
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.metrics.calibration import confusion_matrix, reliability
from fedssl.metrics.predictions import predict_probs
from fedssl.views.run import classifier

EVALUATION = "evaluation.json"
"""File of a run directory."""

Floats = npt.NDArray[np.float64]


def look_closely(
    experiment: Experiment, federation: Federation, models: Mapping[str, NamedArrays], round: int
) -> dict[str, Any]:
    """Return confusion, reliability and accuracy by client of some models on the held-out images, as JSON holds it.

    Args:
        experiment: What ran.
        federation: What it ran on.
        models: Weights by what the model is called.
        round: After which round they are what they are.
    """
    counts = np.bincount(_dealt(federation), minlength=federation.num_clients).tolist()
    return {
        "round": round,
        "client_images": counts,
        "models": {
            name: _of_one(classifier(experiment, federation.data.spec, arrays, round), federation)
            for name, arrays in models.items()
        },
    }


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Return what `write_evaluation` wrote into a run directory; None if nothing was."""
    try:
        found: dict[str, Any] = json.loads((path / EVALUATION).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and {"round", "models"} <= found.keys() else None


def write_evaluation(path: Path, evaluation: Mapping[str, Any]) -> None:
    """Keep a closer look in a run directory, for a report on a machine without the images."""
    write_atomically(path / EVALUATION, json.dumps(evaluation).encode())


def _of_one(network: nn.Module, federation: Federation) -> dict[str, Any]:
    spec, labels = federation.data.spec, federation.held_out.labels
    images = torch.from_numpy(federation.held_out.images)
    probs = predict_probs(network, images, spec).double().numpy()
    found = reliability(probs, labels)
    right = (probs.argmax(1) == labels).astype(np.float64)
    return {
        "confusion": confusion_matrix(labels, probs.argmax(1), spec.num_classes).tolist(),
        "reliability": {
            "count": found.count.tolist(),
            "confidence": _plain(found.confidence),
            "accuracy": _plain(found.accuracy),
            "ece": _plain([found.ece])[0],
        },
        "client_accuracy": _plain(_by_client(network, federation, right)),
    }


def _by_client(network: nn.Module, federation: Federation, right: Floats) -> Floats:
    """Return the accuracy on each client's held-out images, as it sees them, (K,); NaN where it has none."""
    clients = federation.num_clients
    if federation.features is None:
        dealt = federation.held_out_owner >= 0
        owner = federation.held_out_owner[dealt]
        with np.errstate(invalid="ignore"):
            by_client: Floats = np.bincount(owner, right[dealt], minlength=clients) / np.bincount(
                owner, minlength=clients
            )
        return by_client
    accuracies = np.full(clients, np.nan)
    for client in np.unique(_dealt(federation)).tolist():
        images, labels = federation.held_out_at(client)
        probs = predict_probs(network, images, federation.data.spec)
        accuracies[client] = float((probs.argmax(1) == labels).double().mean())
    return accuracies


def _dealt(federation: Federation) -> npt.NDArray[np.int64]:
    return federation.held_out_owner[federation.held_out_owner >= 0]


def _plain(values: Any) -> list[float | None]:
    """Return numbers as JSON can hold them, rounded to a millionth."""
    return [None if math.isnan(value) else round(float(value), 6) for value in values]
