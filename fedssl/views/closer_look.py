"""A closer look at the two global models than each round's evaluation: by image, by class, by confidence and by client."""

import contextlib
import hashlib
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
from fedssl.core.errors import InputError
from fedssl.core.files import write_atomically
from fedssl.core.rng import SERVER
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.metrics.balanced import Balanced, measure_balanced
from fedssl.metrics.calibration import confusion_matrix, measure_reliability
from fedssl.metrics.predictions import predict_probs
from fedssl.views.run import Run, build_classifier

EVALUATION = "evaluation.json"
"""File of a run directory that holds the closer look at the models."""

DIGEST_BYTES = 8
"""Length of an image's fingerprint; that two of a million images share one has the probability 3e-8."""

AT_ONCE = 4096
"""Training images are read this many at a time for their fingerprints, so that memory does not grow with them."""

Floats = npt.NDArray[np.float64]


def look_closely(
    experiment: Experiment, federation: Federation, models: Mapping[str, NamedArrays], round: int
) -> dict[str, Any]:
    """Return what models say of the held-out images, as values for JSON.

    Each model has its class for every image, its confusion matrix, the measures that give every class the same weight, for
    all classes together and by class, its reliability and its accuracy by client. Beside the models are the images' fingerprints and true classes.

    Args:
        experiment: The experiment that ran.
        federation: The federation on which it ran.
        models: Each model's weights by the model's name.
        round: Number of the round after which the models have these weights.
    """
    counts = federation.held_out_sizes.tolist()
    return {
        "round": round,
        "client_images": counts,
        "images": fingerprints(federation.held_out.images),
        "labels": federation.held_out.labels.tolist(),
        "models": {
            name: _evaluate_model(
                build_classifier(
                    experiment, federation.data.spec, arrays, round, lambda: federation
                ),
                federation,
            )
            for name, arrays in models.items()
        },
    }


def recorded_look(run: Run) -> dict[str, Any] | None:
    """Return the recorded closer look if it is of the run's newest models; one of an older version does not name images."""
    recorded = read_evaluation(run.path)
    is_newest = recorded is not None and recorded["round"] == run.newest_round
    return recorded if is_newest else None


def closer_look(run: Run) -> dict[str, Any]:
    """Return a closer look at a run's newest models that names the images: the recorded one if it does, else a new one.

    A new one is recorded if the run directory can be written to.

    Raises:
        InputError: There is no model yet, or the run's images are missing.
    """
    recorded = recorded_look(run)
    if recorded is not None and _has_images(recorded):
        return recorded
    round, models = run.weights()
    evaluation = look_closely(run.experiment, run.federation, models, round)
    with contextlib.suppress(OSError):
        write_evaluation(run.path, evaluation)
    return evaluation


def _has_images(evaluation: Mapping[str, Any]) -> bool:
    """Return whether a closer look says which class each model gives to each image; one of an older version does not."""
    try:
        images, models = evaluation["images"], evaluation["models"]
        numbers = [evaluation["labels"], *(models[name]["predicted"] for name in ("ema", "model"))]
        are_texts = all(isinstance(image, str) for image in images)
        are_classes = all(
            isinstance(each, int) and -1 <= each < 2**31 for row in numbers for each in row
        )
        return are_texts and are_classes and {len(row) for row in numbers} == {len(images)}
    except (KeyError, TypeError):
        return False


def fingerprints(images: npt.NDArray[np.uint8]) -> list[str]:
    """Return a hexadecimal fingerprint of each image's pixels, by which an image is known again; images are (N, C, H, W)."""
    return [
        hashlib.blake2b(image.tobytes(), digest_size=DIGEST_BYTES).hexdigest() for image in images
    ]


def training_fingerprints(run: Run) -> frozenset[str]:
    """Return the fingerprints of all images that a run's clients and server train on, labeled or not.

    Raises:
        InputError: The run's images are missing, or clients train on images of their own, which nobody else knows.
    """
    if run.experiment.federation.private:
        raise InputError("federation.private", "is true, so clients trained on images of their own")
    federation = run.federation
    rows, train = np.flatnonzero(federation.owner >= SERVER), federation.data.train
    parts = (train.read(rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE))
    return frozenset(each for part in parts for each in fingerprints(part))


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Return what `write_evaluation` wrote into a run directory; None if the file is missing or damaged."""
    try:
        found: dict[str, Any] = json.loads((path / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"round", "models"} <= found.keys() else None


def write_evaluation(path: Path, evaluation: Mapping[str, Any]) -> None:
    """Write a closer look into a run directory, so that a machine without the images can make a report."""
    write_atomically(path / EVALUATION, json.dumps(evaluation).encode())


def _evaluate_model(network: nn.Module, federation: Federation) -> dict[str, Any]:
    spec, labels = federation.data.spec, federation.held_out.labels
    images = torch.from_numpy(federation.held_out.images)
    probs = predict_probs(network, images, spec).double().numpy()
    found, predicted = measure_reliability(probs, labels), probs.argmax(1)
    right = (predicted == labels).astype(np.float64)
    return {
        "predicted": predicted.tolist(),
        "confusion": confusion_matrix(labels, predicted, spec.num_classes).tolist(),
        **_balanced(measure_balanced(probs, labels)),
        "reliability": {
            "count": found.count.tolist(),
            "confidence": _plain(found.confidence),
            "accuracy": _plain(found.accuracy),
            "ece": _plain([found.ece])[0],
        },
        "client_accuracy": _plain(_accuracy_by_client(network, federation, right)),
    }


def _balanced(found: Balanced) -> dict[str, Any]:
    """Return the measures of all classes together, and those of each class under ``by_class``."""
    return {
        **{name: _plain([value])[0] for name, value in found.by_name.items()},
        "by_class": {
            "images": found.images.tolist(),
            "recall": _plain(found.recall),
            "precision": _plain(found.precision),
            "f1": _plain(found.f1),
            "auroc": _plain(found.auroc),
        },
    }


def _accuracy_by_client(network: nn.Module, federation: Federation, right: Floats) -> Floats:
    """Return the accuracy on each client's held-out images as the client sees them, (K,); NaN if it has none."""
    clients = federation.num_clients
    if federation.features is None and not federation.sites:
        dealt = federation.held_out_owner >= 0
        owner = federation.held_out_owner[dealt]
        with np.errstate(invalid="ignore"):
            by_client: Floats = np.bincount(owner, right[dealt], minlength=clients) / np.bincount(
                owner, minlength=clients
            )
        return by_client
    accuracies = np.full(clients, np.nan)
    for client in np.flatnonzero(federation.held_out_sizes).tolist():
        images, labels = federation.held_out_at(client)
        probs = predict_probs(network, images, federation.data.spec)
        accuracies[client] = float((probs.argmax(1) == labels).double().mean())
    return accuracies


def _plain(values: Any) -> list[float | None]:
    """Return numbers for JSON, rounded to a millionth, NaN as None."""
    return [None if math.isnan(value) else round(float(value), 6) for value in values]
