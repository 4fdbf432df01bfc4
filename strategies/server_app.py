"""The ServerApp: drive a strategy over any grid, round by round, and keep the record."""

import contextlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import nn

from clients.local_data import simulated_federation
from fedssl import protocol
from fedssl.aggregation import as_type, is_finite, move_average
from fedssl.config import Experiment
from fedssl.data.federation import Federation
from fedssl.engine.local_grid import LocalGrid
from fedssl.errors import RunFailed
from fedssl.methods.base import Method
from fedssl.methods.functional import warm_decay
from fedssl.metrics.accuracy import Evaluation, evaluate
from fedssl.networks import build_network, classifier_names
from fedssl.record.rows import (
    NAN,
    NamedArrays,
    Observer,
    Outcome,
    RoundEnd,
    RoundRow,
)
from fedssl.record.run_directory import RunDirectory, new_run_path
from fedssl.system.devices import Floats
from fedssl.training import Recipe
from strategies.base import strategy_of
from strategies.census import Census, Cohorts
from strategies.round_log import Fates, RoundLog, row_of
from strategies.server_training import ServerTraining
from strategies.shared_state import SharedState, initial_state
from strategies.virtual_time import cohorts_of, make_clock, work_of

NODES_TIMEOUT = 300.0
"""Seconds to wait for all K clients to connect to a grid that is not ours."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment file that Flower's run config names, under Flower's own runtime or SuperLink."""
    file = Path(str(context.run_config["experiment"]))
    root = Path(__file__).resolve().parent.parent
    experiment = Experiment.load(file if file.is_absolute() else root / file)
    serve(experiment, grid, [RunDirectory(new_run_path(experiment))])


def serve(experiment: Experiment, grid: Grid, observers: Sequence[Observer]) -> Outcome:
    """Run an experiment over a grid.

    Args:
        experiment: What to run.
        grid: Where its clients are.
        observers: Told of everything as it happens.

    Raises:
        RunFailed: A round in which every client failed, or clients that are missing; observers are told first.
    """
    server = _Server(experiment, grid, observers)
    try:
        return server.run()
    except BaseException as error:
        for observer in observers:
            # One that fails too, on a full disk say, must not hide why the run stopped or keep the others from it.
            with contextlib.suppress(Exception):
                observer.failed(f"{type(error).__name__}: {error}")
        raise


class _Server:
    """The state of one run at the server."""

    def __init__(self, experiment: Experiment, grid: Grid, observers: Sequence[Observer]) -> None:
        self.experiment = experiment
        self.grid = grid
        self.observers = observers
        self.federation: Federation = simulated_federation(experiment)
        self.arrays: NamedArrays = {}
        self.ema: NamedArrays = {}
        self.state: protocol.NamedArrays = {}
        self.rounds: list[RoundRow] = []
        self.strategy: FlowerStrategy | None = None
        self.clock = make_clock(experiment)
        self.training = ServerTraining(self.federation.server_shard())
        self.classifier_names: dict[str, str] = {}

    def run(self) -> Outcome:
        for observer in self.observers:
            observer.began(self.experiment, self.federation)
        began = time.perf_counter()
        census = self._census()
        cohorts = cohorts_of(self.experiment, census)
        for index in range(len(self.experiment.schedule)):
            self._run_phase(index, cohorts)
        seconds = time.perf_counter() - began
        outcome = Outcome(self.arrays, self.ema, self.state, tuple(self.rounds), seconds)
        for observer in self.observers:
            observer.ended(outcome)
        return outcome

    def _census(self) -> Census:
        if isinstance(self.grid, LocalGrid):
            return Census.of_simulation(self.federation)
        wanted = self.experiment.federation.clients
        deadline = time.monotonic() + NODES_TIMEOUT
        while len(nodes := list(self.grid.get_node_ids())) < wanted:
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"{len(nodes)} of {wanted} clients connected in {NODES_TIMEOUT:g} s"
                )
            time.sleep(0.2)
        text = self.experiment.in_phase(0).to_json()
        return Census.by_query(
            lambda messages: self.grid.send_and_receive(
                messages, timeout=self.experiment.server.timeout
            ),
            nodes,
            text,
            wanted,
        )

    def _run_phase(self, index: int, cohorts: Cohorts) -> None:
        phase = self.experiment.in_phase(index)
        spec = self.federation.data.spec
        network = build_network(phase.model, phase.method, spec, phase.seed)
        self._adopt(phase.recipe, network)
        cohorts.sample = phase.federation.sample
        if self.strategy is None or phase.strategy != self.experiment.in_phase(index - 1).strategy:
            self.strategy = strategy_of(phase).build(cohorts)
        strategy = self.strategy
        text = phase.to_json()
        rounds = phase.num_rounds
        if not self.rounds:
            self._train_at_server(phase, index, network, 0)
        work = None if self.clock is None else work_of(phase, cohorts.census)
        for phase_round in range(1, rounds + 1):
            began = time.perf_counter()
            server_round = len(self.rounds) + 1
            if self.clock is not None:
                cohorts.available = self.clock.open_round(server_round)
            config = protocol.request_config(text, index, phase_round, rounds)
            messages = list(
                strategy.configure_train(
                    server_round, protocol.to_record(self.arrays), config, self.grid
                )
            )
            shared = SharedState(self.state, messages)
            fates = self._fates(messages, cohorts, work)
            log = RoundLog(server_round, cohorts.census, self.arrays, shared, fates)
            sent = log.sent(messages)
            replies = log.watch(sent, self._send(sent, phase.server.timeout))
            if sent or not messages:
                aggregate, _ = strategy.aggregate_train(server_round, replies)
                for (
                    _
                ) in replies:  # a strategy that stops early must not hide a reply from the record
                    pass
                if log.num_ok == 0:
                    self._stop(phase, index, log, began)
                self._accept(aggregate, log)
                self.state = shared.merged()
            self._train_at_server(phase, index, network, phase_round)
            last = index == len(self.experiment.schedule) - 1 and phase_round == rounds
            due = server_round % phase.server.evaluate_every == 0 or last
            self._finish_round(phase, index, network, log, began, evaluate_now=due)

    def _train_at_server(
        self, phase: Experiment, index: int, network: nn.Module, phase_round: int
    ) -> None:
        """Let the server train, where labels are at the server."""
        if self.clock is not None:
            labels = len(self.federation.server_rows)
            self.clock.train_at_server(phase.server_recipe.images_shown(labels, labels))
        self.arrays = self.training.train(
            phase,
            network,
            self.arrays,
            server_round=len(self.rounds) + bool(phase_round),
            phase=index,
            phase_round=phase_round,
        )

    def _fates(self, messages: list[Message], cohorts: Cohorts, work: Floats | None) -> Fates:
        """Return what virtual time makes of the clients that are asked, each with so many images to train on."""
        if self.clock is None or work is None:
            return {}
        census = cohorts.census
        clients = [census.client_at[message.metadata.dst_node_id] for message in messages]
        # A reply brings back what a request takes along: weights and state.
        size = protocol.num_bytes(messages[0].content) if messages else 0
        seconds = self.clock.devices.round_seconds(work, size, size)
        return self.clock.close_round(len(self.rounds) + 1, clients, cohorts.sample, seconds)

    def _adopt(self, recipe: Recipe, network: nn.Module) -> None:
        """Begin a phase: keep every weight that the new network shares with the old, and make server state.

        A classifier keeps its weights when a method puts it into another network, under other names.
        """
        method = recipe.method
        own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        names = {name: name for name in own} | self._renamed(method, network)
        same = {
            name: old
            for name, old in names.items()
            if old in self.arrays and own[name] == self.arrays[old].shape
        }
        protocol.load_network(network, {n: self.arrays[old] for n, old in same.items()}, same)
        fresh = {
            name: tensor.detach().numpy().copy()
            for name, tensor in network.state_dict().items()
            if method.is_shared(name)
        }
        self.ema = {
            name: self.ema[same[name]] if name in same else array for name, array in fresh.items()
        }
        self.arrays = fresh
        self.state = initial_state(recipe, network, self.federation.data.spec)

    def _renamed(self, method: Method, network: nn.Module) -> dict[str, str]:
        """Return the classifier's names in a new network -> its names in the last one."""
        last, self.classifier_names = self.classifier_names, classifier_names(method, network)
        return {now: last[n] for n, now in self.classifier_names.items() if n in last}

    def _send(self, messages: list[Message], timeout: float) -> Iterable[Message]:
        if isinstance(self.grid, LocalGrid):
            return self.grid.stream(messages, timeout=timeout)
        return self.grid.send_and_receive(messages, timeout=timeout)

    def _accept(self, aggregate: ArrayRecord | None, log: RoundLog) -> None:
        """Take the strategy's answer as the new global arrays."""
        if aggregate is None:
            return
        arrays = protocol.from_record(aggregate)
        if not is_finite(arrays):
            raise RunFailed(f"the strategy's answer to round {log.round} is not finite")
        self.arrays = {name: as_type(arrays[name], old) for name, old in self.arrays.items()}

    def _stop(self, phase: Experiment, index: int, log: RoundLog, began: float) -> NoReturn:
        """Record a round without a single usable reply, and end the run with the first reason."""
        seconds = time.perf_counter() - began
        row = row_of(log, index, phase.method.kind, seconds, None, None, self._now)
        for observer in self.observers:
            observer.round_ended(self._end(row, log))
        first = log.failures[0].reason if log.failures else "no client was sampled"
        raise RunFailed(f"all clients of round {log.round} failed; the first one said:\n{first}")

    def _finish_round(
        self,
        phase: Experiment,
        index: int,
        network: nn.Module,
        log: RoundLog,
        began: float,
        *,
        evaluate_now: bool,
    ) -> None:
        decay = warm_decay(phase.server.ema_decay, len(self.rounds))
        buffers = {name for name, _ in network.named_buffers()}
        self.ema = move_average(self.ema, self.arrays, decay, buffers)
        model = self._evaluate(phase.method, network, self.arrays) if evaluate_now else None
        ema = self._evaluate(phase.method, network, self.ema) if evaluate_now else None
        seconds = time.perf_counter() - began
        row = row_of(log, index, phase.method.kind, seconds, model, ema, self._now)
        self.rounds.append(row)
        for observer in self.observers:
            observer.round_ended(self._end(row, log))

    def _end(self, row: RoundRow, log: RoundLog) -> RoundEnd:
        return RoundEnd(row, log.clients, log.failures, self.arrays, self.ema, self.state)

    @property
    def _now(self) -> float:
        return NAN if self.clock is None else self.clock.now

    def _evaluate(self, method: Method, network: nn.Module, arrays: NamedArrays) -> Evaluation:
        protocol.load_network(network, arrays, arrays)
        held_out = self.federation.held_out
        return evaluate(
            method.classifier(network),
            torch.from_numpy(held_out.images),
            torch.from_numpy(held_out.labels),
            self.federation.data.spec,
        )
