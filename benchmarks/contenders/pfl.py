"""pfl-research (Granqvist et al., NeurIPS 2024, arXiv:2404.06430) with its own PyTorch model and simulated backend.

pfl runs in one process, or in several processes that torchrun starts. Then each process trains its part of the cohort,
and the sums are all-reduced. pfl's other way to several processes, Horovod, must be compiled and is not measured.
"""

import os
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.contenders.job import Job, Stopwatch
from benchmarks.local_step import LR, Batch, batches, fixmatch_loss, make_optimizer
from benchmarks.workloads import Plain, draws_of


class _FixMatch(nn.Module):
    """A network with the loss that pfl minimizes, as pfl expects it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, labeled: Tensor, labels: Tensor, weak: Tensor, strong: Tensor) -> Tensor:
        """Return the loss of one step."""
        return fixmatch_loss(self.network, Batch(labeled, labels, weak, strong))

    def metrics(self, *batch: Tensor) -> dict[str, object]:
        """Return no metrics: pfl always evaluates clients in its first round."""
        return {}


class _Client(Dataset):
    """A client's tensors, which are shown as the batches of a round instead of one after the other."""

    def __init__(self, plain: Plain, client: int, visit: int, generator: torch.Generator) -> None:
        data = plain.clients[client]
        super().__init__((data.images, data.labels), user_id=str(client))
        self._shown = data, plain.work, plain.normalize
        self._stream = generator, visit, client

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, ...]]:
        """Yield each step's tensors, in the order of the loss's arguments."""
        for batch in batches(*self._shown, draws_of(*self._stream)):
            yield batch.labeled, batch.labels, batch.weak, batch.strong


class _Timed(TrainingProcessCallback):
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note the time."""
        self._watch.round_ended()
        return False, Metrics()


def run(job: Job, watch: Stopwatch) -> dict[str, Tensor] | None:
    """Run the job, and return the final weights; of several processes, only the first returns them."""
    plain = Plain(job.experiment())
    np.random.seed(plain.seed)  # noqa: NPY002 - pfl draws from the global stream
    module = _FixMatch(plain.network())
    model = PyTorchModel(
        model=module,
        local_optimizer_create=make_optimizer,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    visits: Counter[int] = Counter()
    generator = torch.Generator()

    def make_client(client: int) -> _Client:
        visits[client] += 1
        return _Client(plain, client, visits[client], generator)

    clients = FederatedDataset(
        make_client, get_user_sampler("minimize_reuse", list(range(plain.num_clients)))
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds + 1,
            train_cohort_size=plain.sample,
            val_cohort_size=None,
        ),
        SimulatedBackend(clients, clients, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_batch_size=None, local_num_epochs=1, local_learning_rate=LR),
        NNEvalHyperParams(local_batch_size=None),
        [_Timed(watch)],
        send_metrics_to_platform=False,
    )
    if "TORCHELASTIC_RUN_ID" in os.environ:
        watch.note_memory(os.getppid())
        if os.environ["RANK"] != "0":
            return None
    return module.network.state_dict()
