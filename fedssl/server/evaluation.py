"""Evaluation of global models on the held-out images: here, or in shares on the workers where that is faster."""

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
"""Held-out images from which on workers without GPUs are asked: of fewer, a call costs more than it saves."""


def are_shared(workers: ClientGrid, num_images: int) -> bool:
    """Say whether workers are asked to evaluate so many images; those with GPUs always are, for here it is done without."""
    return workers.has_gpus or (workers.num_workers > 1 and num_images >= WORTH_SHARING)


def evaluate_models(
    text: str,
    models: Sequence[NamedArrays],
    num_images: int,
    workers: ClientGrid,
    timeout: float | None = None,
) -> list[Evaluation]:
    """Return how each model does on the held-out images.

    Args:
        text: The experiment of the phase, as JSON.
        models: Weights by name.
        num_images: Held-out images.
        workers: The grid whose workers may help.
        timeout: Seconds that they may take.
    """
    if are_shared(workers, num_images):
        try:
            return _by_workers(text, models, num_images, workers, timeout)
        except RunFailed as error:  # not for this: here it comes to the same, only later
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
    # Every model goes to as many workers as there are for it, so that all of them are busy and none sends it twice.
    shares = max(1, workers.num_workers // len(models))
    each = -(-len(batches) // shares) * BATCH_SIZE
    starts = range(0, num_images, each)
    calls = [(text, arrays, start, start + each) for arrays in models for start in starts]
    results = iter(workers.map(evaluate_share, calls, timeout=timeout))
    return [add_evaluations(part for _ in starts for part in next(results)) for _ in models]


def evaluate_share(
    device: str, text: str, arrays: NamedArrays, start: int, end: int
) -> list[Evaluation]:
    """Return how a model does on some held-out images, batch by batch; runs in a worker or at the server.

    Args:
        device: Where.
        text: The experiment of the phase, as JSON.
        arrays: Weights by name; those that clients do not share are the initial ones.
        start, end: Held-out images, as rows.
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
