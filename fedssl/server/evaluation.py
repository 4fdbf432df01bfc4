"""Evaluate global models on the held-out images: at the server, or in shares on the workers where that is faster."""

from collections.abc import Sequence

import torch
from flwr.app import RecordDict

from fedssl.clients.client_app import set_threads
from fedssl.clients.local_data import simulated_federation
from fedssl.clients.resident import resident
from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import RunFailed
from fedssl.engine.client_grid import ClientGrid
from fedssl.metrics.accuracy import BATCH_SIZE, Evaluation, add_evaluations, evaluate_batches

WORTH_SHARING = 2048
"""Workers without GPUs evaluate only from this many held-out images on; with fewer, a call costs more than it saves."""


def are_shared(workers: ClientGrid, num_images: int) -> bool:
    """Say whether workers evaluate so many images; workers with GPUs always do, because the server uses the CPU."""
    return workers.has_gpus or (workers.num_workers > 1 and num_images >= WORTH_SHARING)


def evaluate_models(
    text: str,
    models: Sequence[NamedArrays],
    num_images: int,
    workers: ClientGrid,
    timeout: float | None = None,
) -> list[Evaluation]:
    """Return the evaluation of each model on the held-out images.

    Args:
        text: The experiment of the phase, as JSON.
        models: Weights by name.
        num_images: Number of held-out images.
        workers: The grid whose workers may evaluate.
        timeout: Seconds that the workers may take; None: any time.
    """
    if are_shared(workers, num_images):
        try:
            return _by_workers(text, models, num_images, workers, timeout)
        except RunFailed as error:  # the server gets the same result, only later
            workers.incidents.append(f"evaluated at the server: {error}")
    return [
        add_evaluations(evaluate_share("cpu", text, arrays, 0, num_images)) for arrays in models
    ]


def _by_workers(
    text: str,
    models: Sequence[NamedArrays],
    num_images: int,
    workers: ClientGrid,
    timeout: float | None,
) -> list[Evaluation]:
    batches = range(0, num_images, BATCH_SIZE)
    # The workers are divided among the models, so that all are busy and each gets only one model.
    shares = max(1, workers.num_workers // len(models))
    each = -(-len(batches) // shares) * BATCH_SIZE
    starts = range(0, num_images, each)
    calls = [(text, arrays, start, start + each) for arrays in models for start in starts]
    results = iter(workers.map(evaluate_share, calls, timeout=timeout))
    return [add_evaluations(part for _ in starts for part in next(results)) for _ in models]


def evaluate_share(
    device: str, text: str, arrays: NamedArrays, start: int, end: int
) -> list[Evaluation]:
    """Return the evaluation of a model on some held-out images, batch by batch; runs in a worker or at the server.

    Args:
        device: Device on which the model is evaluated.
        text: The experiment of the phase, as JSON.
        arrays: Shared weights by name; private weights are the initial ones.
        start, end: Rows of the held-out images: from `start` up to and without `end`.
    """
    here = resident(text, device)
    set_threads(here.experiment)
    here.weights.load(arrays, RecordDict())
    federation = simulated_federation(here.experiment)
    held_out = federation.held_out
    return evaluate_batches(
        here.recipe.method.classifier(here.network),
        torch.from_numpy(held_out.images[start:end]).to(device),
        torch.from_numpy(held_out.labels[start:end]).to(device),
        federation.data.spec,
    )
