"""Evaluate global models on the held-out images: at the server, or in shares on the workers where that is faster."""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import RecordDict
from torch import Tensor

from fedssl.clients.client_app import set_threads
from fedssl.clients.local_data import simulated_federation
from fedssl.clients.resident import Resident, resident
from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import RunFailed
from fedssl.data.federation import Federation
from fedssl.engine.client_grid import ClientGrid
from fedssl.experiment.experiment import PhasePlan
from fedssl.metrics.accuracy import BATCH_SIZE, Evaluation, add_evaluations, evaluate_batches
from fedssl.metrics.evaluators.base import EVALUATORS, Evaluator
from fedssl.metrics.predictions import predict_probs
from fedssl.models.modes import evaluation_mode
from fedssl.training.judging import Judge, learn_judge, subject_of

Probs = npt.NDArray[np.float32]
Found = TypeVar("Found")
Share = Callable[[str, "Judging", NamedArrays, NamedArrays, int, int], Found]

WORTH_SHARING = 2048
"""Workers without GPUs evaluate only from this many held-out images on; with fewer, a call costs more than it saves."""


class Judging(NamedTuple):
    """What a worker must know to judge a phase's models.

    Args:
        experiment: The experiment of the phase, as JSON.
        evaluator: The phase's evaluator, as JSON: workers parse it, because they may lack a user's module otherwise.
        learns: Whether the evaluator learns from labeled images.
    """

    experiment: str
    evaluator: str
    learns: bool

    @classmethod
    def of(cls, text: str, evaluator: Evaluator) -> "Judging":
        """Return how the models of a phase are judged, from the phase's experiment as JSON and its evaluator."""
        return cls(text, json.dumps(evaluator.to_dict()), evaluator.learns)


def are_shared(workers: ClientGrid, num_images: int) -> bool:
    """Say whether workers evaluate so many images; workers with GPUs always do, because the server uses the CPU."""
    return workers.has_gpus or (workers.num_workers > 1 and num_images >= WORTH_SHARING)


def check_evaluator(phase: PhasePlan, federation: Federation) -> None:
    """Raise `InputError` if the phase's evaluator cannot judge its models: for want of a layer, or of labels."""
    evaluator = phase.server.evaluator
    if not evaluator.learns:
        evaluator.check((), federation)
        return
    spec = federation.data.spec
    network = phase.build_network(spec)
    subject = subject_of(phase.method, network, spec, evaluator)
    evaluator.check(tuple(subject.layers), federation)


def evaluate_models(
    judging: Judging,
    models: Sequence[NamedArrays],
    num_images: int,
    workers: ClientGrid,
    timeout: float | None = None,
) -> list[Evaluation]:
    """Return the evaluation of each model on the held-out images.

    An evaluator that learns does so once for each model. What it has learned goes to the workers with their shares.

    Args:
        judging: How the models are judged.
        models: Weights by name.
        num_images: Number of held-out images.
        workers: The grid whose workers may evaluate.
        timeout: Seconds that the workers may take; None: any time.
    """
    found = _in_shares(evaluate_share, judging, models, num_images, workers, timeout)
    return [add_evaluations(part for share in shares for part in share) for shares in found]


def predict_models(
    judging: Judging,
    models: Sequence[NamedArrays],
    num_images: int,
    workers: ClientGrid,
    timeout: float | None = None,
) -> list[Probs]:
    """Return each model's probability of every class for the held-out images, (N, C); arguments as in `evaluate_models`."""
    found = _in_shares(predict_share, judging, models, num_images, workers, timeout)
    return [np.concatenate(shares) for shares in found]


def _in_shares(
    share: Share[Found],
    judging: Judging,
    models: Sequence[NamedArrays],
    num_images: int,
    workers: ClientGrid,
    timeout: float | None,
) -> list[list[Found]]:
    """Return for each model what a function finds on shares of the held-out images, by workers if that is faster."""
    if are_shared(workers, num_images):
        try:
            return _by_workers(share, judging, models, num_images, workers, timeout)
        except RunFailed as error:  # the server gets the same result, only later
            workers.incidents.append(f"evaluated at the server: {error}")
    return [[_at_server(share, judging, arrays, num_images)] for arrays in models]


def _at_server(
    share: Share[Found], judging: Judging, arrays: NamedArrays, num_images: int
) -> Found:
    learned = learn_share("cpu", judging, arrays) if judging.learns else {}
    return share("cpu", judging, arrays, learned, 0, num_images)


def _by_workers(
    share: Share[Found],
    judging: Judging,
    models: Sequence[NamedArrays],
    num_images: int,
    workers: ClientGrid,
    timeout: float | None,
) -> list[list[Found]]:
    learned: Sequence[NamedArrays] = [{} for _ in models]
    if judging.learns:
        learned = workers.map(
            learn_share, [(judging, arrays) for arrays in models], timeout=timeout
        )
    batches = range(0, num_images, BATCH_SIZE)
    # The workers are divided among the models, so that all are busy and each gets only one model.
    shares = max(1, workers.num_workers // len(models))
    each = -(-len(batches) // shares) * BATCH_SIZE
    starts = range(0, num_images, each)
    calls = [
        (judging, arrays, own, start, start + each)
        for arrays, own in zip(models, learned, strict=True)
        for start in starts
    ]
    results = iter(workers.map(share, calls, timeout=timeout))
    return [[next(results) for _ in starts] for _ in models]


def learn_share(device: str, judging: Judging, arrays: NamedArrays) -> NamedArrays:
    """Return what the evaluator learns of a model; runs in a worker or at the server.

    Args:
        device: Device on which the model makes features.
        judging: How the model is judged.
        arrays: Shared weights by name; private weights are the initial ones.
    """
    here, evaluator = _loaded(device, judging, arrays)
    federation = simulated_federation(here.experiment)
    learned = learn_judge(evaluator, here.recipe.method, here.network, federation)
    return {name: tensor.cpu().numpy() for name, tensor in learned.items()}


def evaluate_share(
    device: str,
    judging: Judging,
    arrays: NamedArrays,
    learned: NamedArrays,
    start: int,
    end: int,
) -> list[Evaluation]:
    """Return the evaluation of a model on some held-out images, batch by batch; runs in a worker or at the server.

    Args:
        device: Device on which the model is evaluated.
        judging: How the model is judged.
        arrays: Shared weights by name; private weights are the initial ones.
        learned: What `learn_share` returned for the model.
        start, end: Rows of the held-out images: from `start` up to and without `end`.
    """
    judge, images, labels = _loaded_judge(device, judging, arrays, learned, start, end)
    with evaluation_mode(judge.network):
        return evaluate_batches(judge.scores, images, labels, judge.spec)


def predict_share(
    device: str,
    judging: Judging,
    arrays: NamedArrays,
    learned: NamedArrays,
    start: int,
    end: int,
) -> Probs:
    """Return a model's probabilities for some held-out images, (n, C); arguments as in `evaluate_share`."""
    judge, images, _ = _loaded_judge(device, judging, arrays, learned, start, end)
    with evaluation_mode(judge.network):
        return predict_probs(judge, images, judge.spec).cpu().numpy()


def _loaded_judge(
    device: str,
    judging: Judging,
    arrays: NamedArrays,
    learned: NamedArrays,
    start: int,
    end: int,
) -> tuple[Judge, Tensor, Tensor]:
    """Return the judge of a model, and some held-out images with their labels; arguments as in `evaluate_share`."""
    here, evaluator = _loaded(device, judging, arrays)
    federation = simulated_federation(here.experiment)
    held_out, spec = federation.held_out, federation.data.spec
    tensors = {name: torch.tensor(array) for name, array in learned.items()}
    return (
        Judge(evaluator, here.recipe.method, here.network, spec, tensors),
        torch.from_numpy(held_out.images[start:end]).to(device),
        torch.from_numpy(held_out.labels[start:end]).to(device),
    )


def _loaded(device: str, judging: Judging, arrays: NamedArrays) -> tuple[Resident, Evaluator]:
    """Return the process's resident with a model's weights, and the evaluator."""
    here = resident(judging.experiment, device)
    set_threads(here.experiment)
    here.weights.load(arrays, RecordDict())
    evaluator = EVALUATORS.build(json.loads(judging.evaluator))
    assert isinstance(evaluator, Evaluator)
    return here, evaluator
