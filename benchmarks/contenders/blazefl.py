"""BlazeFL (Azuma & Nishio, 2026, arXiv:2604.03606): its FedAvg server with a serial, threaded or multi-process trainer.

The trainers are written as BlazeFL's README says, but are faster than its examples: a network stays in its thread or
process, and clients' tensors reach processes by fork. Threads run in parallel only on a Python without a global lock.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing as mp
from blazefl.contrib.fedavg import (
    FedAvgBaseServerHandler,
    FedAvgProcessPoolUplinkPackage,
    FedAvgUplinkPackage,
)
from blazefl.core import (
    BaseClientTrainer,
    IPCMode,
    ProcessPoolClientTrainer,
    SHMHandle,
    ThreadPoolClientTrainer,
    deserialize_model,
)
from torch import Tensor, nn

from benchmarks.contenders.job import Job, Stopwatch
from benchmarks.local_step import batches, make_optimizer, train
from benchmarks.workloads import Plain, draws_of


@dataclass
class _Downlink:
    """The global model, and the number of the round that starts from it."""

    model_parameters: Tensor
    round: int


def _serialized(network: nn.Module) -> Tensor:
    """Return all weights as one vector; BlazeFL's own function cannot flatten channels-last weights."""
    return torch.cat([weight.data.reshape(-1) for weight in network.state_dict().values()])


class _Server(FedAvgBaseServerHandler):
    """BlazeFL's server; it also sends the number of the round."""

    def downlink_package(self) -> _Downlink:
        """Return the package that the server sends to clients."""
        return _Downlink(_serialized(self.model), self.round + 1)


class _Clients:
    """Train any client, with one network for each thread."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self._data = plain.clients
        self._normalize = plain.normalize
        self._resident = threading.local()

    def train(self, client: int, payload: _Downlink) -> FedAvgUplinkPackage:
        """Return a client's weights after its round."""
        plain, resident = self._plain, self._resident
        if not hasattr(resident, "network"):
            resident.network, resident.generator = plain.network(), torch.Generator()
        data = self._data[client]
        deserialize_model(resident.network, payload.model_parameters)
        draws = draws_of(resident.generator, payload.round, client)
        train(resident.network, batches(data, plain.work, self._normalize, draws))
        return FedAvgUplinkPackage(client, _serialized(resident.network), len(data))


class _Uploads:
    """The common part of all trainers: the list of packages for the server."""

    cache: list[FedAvgUplinkPackage]

    def uplink_package(self) -> list[FedAvgUplinkPackage]:
        """Return the round's packages and forget them."""
        packages, self.cache = self.cache, []
        return packages


class _Serial(_Uploads, BaseClientTrainer):
    def __init__(self, clients: _Clients) -> None:
        self.clients, self.cache = clients, []

    def local_process(self, payload: _Downlink, cid_list: list[int]) -> None:
        """Train one client after the other."""
        self.cache = [self.clients.train(client, payload) for client in cid_list]


class _Threads(_Uploads, ThreadPoolClientTrainer):
    def __init__(self, clients: _Clients, workers: int) -> None:
        self.clients, self.cache = clients, []
        self.num_parallels, self.device, self.device_count = workers, "cpu", 0
        self.stop_event = threading.Event()

    def worker(
        self, cid: int, device: str, payload: _Downlink, stop_event: threading.Event
    ) -> FedAvgUplinkPackage:
        """Train one client."""
        return self.clients.train(cid, payload)


_forked: list[_Clients] = []
"""The clients that a worker process inherits when it is forked, at the start of every round."""


class _Processes(_Uploads, ProcessPoolClientTrainer):
    def __init__(self, clients: _Clients, workers: int, size: int, watch: Stopwatch) -> None:
        self.cache, self.ipc_mode = [], IPCMode.SHARED_MEMORY
        self.num_parallels, self.device, self.device_count = workers, "cpu", 0
        self.stop_event = mp.Manager().Event()
        self._size, self._watch = size, watch
        _forked[:] = [clients]
        _import_before_forks()

    def get_client_config(self, cid: int) -> int:
        """Return all that a worker must know about a client: its number."""
        return cid

    def prepare_uplink_package_buffer(self) -> FedAvgProcessPoolUplinkPackage:
        """Return an empty package with room for a model."""
        return FedAvgProcessPoolUplinkPackage(-1, torch.empty(self._size), 0)

    def progress_fn(self, it: list[Any]) -> Iterable[Any]:
        """Pass replies on, and note the workers' memory before they end."""
        yield from it
        if self._watch.in_last_round():
            self._watch.note_memory()

    @staticmethod
    def worker(
        config: int,
        payload: _Downlink,
        device: str,
        stop_event: threading.Event,
        *,
        shm_buffer: FedAvgProcessPoolUplinkPackage,
    ) -> FedAvgProcessPoolUplinkPackage:
        """Train one client; its model returns through shared memory."""
        package = _forked[0].train(config, payload)
        shm_buffer.model_parameters.copy_(package.model_parameters)
        return FedAvgProcessPoolUplinkPackage(config, SHMHandle(), package.data_size)


def _import_before_forks() -> None:
    """Take an optimizer step, so that torch's late imports (1.2 s) are not made anew in each round's processes."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    make_optimizer([weight]).step()


class _Selector:
    """BlazeFL's way to ask for a network."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain

    def select_model(self, model_name: str) -> nn.Module:
        """Return the workload's network."""
        return self._plain.network()


def run(job: Job, watch: Stopwatch, mode: str) -> dict[str, Tensor]:
    """Run the job, and return the final weights."""
    plain = Plain(job.experiment())
    server = _Server(
        model_selector=_Selector(plain),
        model_name="cnn",
        dataset=None,  # only for evaluation, which is off
        global_round=job.rounds,
        num_clients=plain.num_clients,
        sample_ratio=plain.sample / plain.num_clients,
        device="cpu",
        batch_size=1,
        seed=plain.seed,
    )
    trainer = _trainer(mode, _Clients(plain), job, watch, server)
    while not server.if_stop():
        cohort = server.sample_clients()
        trainer.local_process(server.downlink_package(), cohort)
        for package in trainer.uplink_package():
            server.load(package)
        watch.round_ended()
    return server.model.state_dict()


def _trainer(
    mode: str, clients: _Clients, job: Job, watch: Stopwatch, server: _Server
) -> _Serial | _Threads | _Processes:
    if mode == "serial":
        return _Serial(clients)
    if mode == "threads":
        return _Threads(clients, job.workers)
    return _Processes(clients, job.workers, len(_serialized(server.model)), watch)
