"""Flower at its best: its FedAvg in its own simulation runtime, with a ClientApp that takes the plain step only.

Every actor keeps one network and all clients' tensors. A message carries the model and the number of the round.
"""

import functools
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from benchmarks.contenders.job import Job, Stopwatch
from benchmarks.local_step import batches, train
from benchmarks.workloads import Plain, draws_of
from fedssl.app.simulation import plan_workers_here
from fedssl.engine.flower import simulate
from fedssl.experiment.experiment import Experiment

app = ClientApp()


class _Actor:
    """The objects that stay in a worker process."""

    def __init__(self, plain: Plain) -> None:
        torch.set_num_threads(1)
        self.network = plain.network()
        self.clients = plain.clients
        self.normalize = plain.normalize
        self.work = plain.work
        self.generator = torch.Generator()


@functools.cache
def _actor(experiment: str) -> _Actor:
    return _Actor(Plain(Experiment.from_json(experiment)))


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Train the received weights on this client's tensors."""
    config = message.content.config_records["config"]
    actor = _actor(str(config["experiment"]))
    client = int(context.node_config["partition-id"])
    data = actor.clients[client]
    actor.network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    draws = draws_of(actor.generator, int(config["server-round"]), client)
    train(actor.network, batches(data, actor.work, actor.normalize, draws))
    arrays = ArrayRecord(actor.network.state_dict())
    metrics = MetricRecord({"num-examples": len(data)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


class _TimedFedAvg(FedAvg):
    """Flower's FedAvg, which also notes the end of each round."""

    def __init__(self, watch: Stopwatch, fraction: float, sample: int) -> None:
        super().__init__(fraction, fraction_evaluate=0.0, min_train_nodes=sample)
        self._watch = watch

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate as Flower does, but refuse a round that lost clients, because it would look fast."""
        replies = list(replies)
        lost = [reply.error.reason for reply in replies if reply.has_error()]
        if lost or len(replies) < self.min_train_nodes:
            raise RuntimeError(f"{len(replies)} replies, {len(lost)} of them errors: {lost[:1]}")
        aggregate = super().aggregate_train(server_round, replies)
        self._watch.round_ended()
        return aggregate


def run(job: Job, watch: Stopwatch) -> dict[str, Tensor]:
    """Run the job, and return the final weights."""
    experiment = job.experiment(kind="flower", workers=job.workers)
    plain = Plain(experiment)
    strategy = _TimedFedAvg(watch, plain.sample / plain.num_clients, plain.sample)
    found: list[dict[str, Tensor]] = []

    def serve(grid: Grid) -> None:
        result = strategy.start(
            grid,
            ArrayRecord(plain.network().state_dict()),
            num_rounds=job.rounds,
            train_config=ConfigRecord({"experiment": experiment.to_json()}),
        )
        found.append(result.arrays.to_torch_state_dict())

    simulate(serve, app, plain.num_clients, plan_workers_here(experiment))
    return found[0]
