"""The ServerApp: drive a strategy over any grid, round by round, and keep the record."""

import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import nn

from fedssl.clients.local_data import simulated_federation
from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import FedsslError, InputError, RunFailed
from fedssl.data.federation import Federation
from fedssl.data.terms import Terms
from fedssl.engine.local_grid import LocalGrid
from fedssl.engine.persistent_grid import PersistentGrid
from fedssl.exchange import protocol
from fedssl.exchange.buffers import attach_buffers, parameters
from fedssl.exchange.census import Census, Cohorts, refuse_private, some
from fedssl.exchange.sums import Span, as_type, is_finite, move_average
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.system.devices import Floats
from fedssl.methods.base import Method
from fedssl.methods.functional import warm_decay
from fedssl.metrics.drift import update_norm
from fedssl.record.remarks import most_frequent_share
from fedssl.record.rows import AT_SERVER, NAN, Observer, Outcome
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import new_run_path
from fedssl.record.snapshot import Snapshot
from fedssl.server.bound_numbers import numbers_of, with_bound_numbers
from fedssl.server.client_memory import can_resume, cannot_resume
from fedssl.server.cohort_training import train_cohort
from fedssl.server.fusing import fused_size, fused_units
from fedssl.server.method_state import attach, initial_state, merged
from fedssl.server.phase import Phase
from fedssl.server.privacy import check_privacy, with_server_noise
from fedssl.server.round_ends import Finished, RoundEnds
from fedssl.server.round_log import Fates, RoundLog
from fedssl.server.server_training import ServerTraining
from fedssl.server.virtual_time import cohorts_of, make_clock, work_of
from fedssl.strategies.base import CohortStrategy, strategy_of
from fedssl.strategies.strategy_state import load_state, state_of
from fedssl.training.loop import Recipe
from fedssl.training.network import build_network, classifier_names

NODES_TIMEOUT = 300.0
"""Seconds to wait for all K clients to connect to a grid that is not ours."""

app = ServerApp()

logger = logging.getLogger("fedssl.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run an experiment under Flower's own runtime or SuperLink.

    Flower's run config names it: ``experiment`` is a file of the app that was submitted, or ``experiment-json`` the
    experiment itself; ``run-directory``, if it is not empty, is where it is recorded; ``nodes`` says which node is which
    client, where numbers are bound to keys.
    """
    config = context.run_config
    text = str(config.get("experiment-json", ""))
    experiment = (
        Experiment.from_json(text)
        if text
        else Experiment.load(_submitted(str(config["experiment"])))
    )
    path = str(config.get("run-directory", ""))
    serve(
        experiment,
        PersistentGrid(grid),
        [RunDirectory(Path(path) if path else new_run_path(experiment))],
        numbers=numbers_of(str(config.get("nodes", ""))),
    )


def _submitted(name: str) -> Path:
    """Return the path of a file of the app that Flower runs, whose folder it puts in front of the import path (1.41).

    Raises:
        InputError: There is no such file.
    """
    found = next((Path(folder, name) for folder in sys.path if Path(folder, name).is_file()), None)
    if found is None:
        raise InputError(
            "experiment",
            f"is {name!r}, and the app holds no such file",
            "name one below experiments/, as seen from the folder that `flwr run` is given",
        )
    return found


def serve(
    experiment: Experiment,
    grid: Grid,
    observers: Sequence[Observer],
    resume: Snapshot | None = None,
    *,
    numbers: Mapping[int, int] | None = None,
) -> Outcome:
    """Run an experiment over a grid.

    Args:
        experiment: What to run.
        grid: Where its clients are.
        observers: Told of everything as it happens.
        resume: Go on after this; None begins.
        numbers: Node id -> the client number that is bound to it, on a grid that is not ours.

    Raises:
        InputError: The run cannot go on here, or clients of a simulation are to bring private data.
        RunFailed: A round in which every client failed, or clients that are missing; observers are told first.
    """
    if isinstance(grid, LocalGrid):
        refuse_private(experiment)
        grid.states.discard()  # of a run that did not end
    server = _Server(experiment, grid, observers, numbers or {})
    try:
        return server.run(resume)
    except BaseException as error:
        led_there = grid.incidents if isinstance(grid, LocalGrid) else []
        reason = "\n".join([_reason(error, grid), *led_there])
        for observer in reversed(observers):  # the screen before the files, which can take a while
            try:
                observer.failed(reason)
            except Exception as another:
                # On a full disk, say. It must not hide why the run stopped or keep the others from it.
                if str(another) != str(error):
                    error.add_note(f"{type(observer).__name__} took no note of it: {another}")
        raise


def _reason(error: BaseException, grid: Grid) -> str:
    """Return why a run stops; what is nobody's mistake comes with its traceback."""
    if isinstance(error, SystemExit) and not isinstance(grid, LocalGrid):
        return (
            "the server app was ended by a signal: the run was stopped, or the executor was ended"
        )
    said = f"{type(error).__name__}: {error}"
    if not isinstance(error, Exception) or isinstance(error, FedsslError):
        return said
    return f"{said}{AT_SERVER}{''.join(traceback.format_exception(error))}".rstrip()


class _Server:
    """The state of one run at the server."""

    def __init__(
        self,
        experiment: Experiment,
        grid: Grid,
        observers: Sequence[Observer],
        numbers: Mapping[int, int],
    ) -> None:
        self.experiment = experiment
        self.numbers = numbers
        self.grid = grid
        self.observers = observers
        self.federation: Federation = simulated_federation(experiment)
        self.arrays: NamedArrays = {}
        self.ema: NamedArrays = {}
        self.state: NamedArrays = {}
        self.round = 0
        self.ends = RoundEnds(grid, observers, len(self.federation.held_out))
        self.strategy: FlowerStrategy | None = None
        self.clock = make_clock(experiment)
        self.training = ServerTraining(self.federation.server_shard())
        self.classifier_names: dict[str, str] = {}
        self.fused_size: dict[int, int] = {}
        self.began = 0.0
        self.is_kept = False
        """Whether the last round kept the old model, for the strategy's answer was not finite."""
        data, private = self.federation.data, experiment.federation.private
        self.terms = Terms.of(data) if private else None
        """What clients with private data must know; nobody else is sent it."""
        self.resumable = can_resume(experiment, grid, self.federation.data.spec)

    def run(self, resume: Snapshot | None) -> Outcome:
        for observer in self.observers:
            observer.began(self.experiment, self.federation)
        self.began = time.perf_counter()
        census = self._census()
        cohorts = cohorts_of(self.experiment, census)
        if resume is not None:
            self._restore(resume, cohorts)
            for observer in self.observers:
                observer.resumed(resume)
        try:
            for index in range(len(self.experiment.schedule)):
                self._run_phase(index, cohorts)
        except BaseException:
            self.ends.rescue()  # a round that was over before this happened
            raise
        seconds = time.perf_counter() - self.began
        rows, share = tuple(self.ends.rows), most_frequent_share(self.federation.held_out.labels)
        outcome = Outcome(self.arrays, self.ema, self.state, rows, seconds, share)
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
        timeout = self.experiment.server.timeout
        return Census.by_query(
            with_bound_numbers(
                lambda messages: self.grid.send_and_receive(messages, timeout=timeout),
                self.numbers,
            ),
            nodes,
            text,
            wanted,
            self.terms,
            min_success=self.experiment.server.min_success,
            max_examples=self.experiment.server.max_client_examples,
        )

    def _run_phase(self, index: int, cohorts: Cohorts) -> None:
        experiment = self.experiment.in_phase(index)
        done = sum(row.phase == index for row in self.ends.rows)
        if done == experiment.num_rounds:
            return
        spec = self.federation.data.spec
        network = build_network(experiment.model, experiment.method, spec, experiment.seed)
        check_privacy(experiment, network)
        cohorts.sample = experiment.federation.sample
        if done == 0:
            self._adopt(experiment.recipe, network)
            last = self.experiment.in_phase(index - 1).strategy
            if self.strategy is None or experiment.strategy != last:
                self.strategy = strategy_of(experiment).build(cohorts)
        assert self.strategy is not None
        work = work_of(experiment, cohorts.census)
        phase = Phase(
            index,
            experiment,
            experiment.to_json(),
            network,
            self.strategy,
            work,
        )
        if self.round == 0:
            self._train_at_server(phase, 0)
        for phase_round in range(done + 1, experiment.num_rounds + 1):
            self._run_round(phase, phase_round, cohorts)
        self.ends.catch_up()

    def _restore(self, snapshot: Snapshot, cohorts: Cohorts) -> None:
        """Be as the server was when the snapshot was taken."""
        if not self.resumable:
            raise cannot_resume(self.experiment, self.federation.data.spec)
        self.began -= snapshot.seconds
        self.arrays, self.ema = snapshot.arrays, snapshot.ema
        self.state = dict(snapshot.state)
        self.ends.rows = list(snapshot.rounds)
        self.round = snapshot.round
        self.strategy = strategy_of(self.experiment.in_phase(snapshot.phase)).build(cohorts)
        load_state(self.strategy, snapshot.strategy)
        self.training.load_state(snapshot.training, snapshot.phase)
        self.classifier_names = dict(snapshot.classifier_names)
        self.fused_size = dict(snapshot.fused_size)
        if self.clock is not None and snapshot.virtual_seconds is not None:
            self.clock.now = snapshot.virtual_seconds
        if isinstance(self.grid, LocalGrid):
            self.grid.states.restore(snapshot.round, snapshot.clients)

    def _snapshot(self) -> Snapshot | None:
        """Return what the run could go on from, but for the rows of its rounds."""
        if not self.resumable or self.strategy is None:
            return None
        try:
            strategy = state_of(self.strategy)
        except (
            InputError
        ) as error:  # of an attribute that it made in a round; the run itself is sound
            self.resumable = False
            logger.warning("no further checkpoint is written: %s", error)
            return None
        return Snapshot(
            rounds=(),
            arrays=self.arrays,
            ema=self.ema,
            state=self.state,
            strategy=strategy,
            training=self.training.state(),
            classifier_names=self.classifier_names,
            fused_size=dict(self.fused_size),
            virtual_seconds=None if self.clock is None else self.clock.now,
            seconds=time.perf_counter() - self.began,
            clients=self.grid.states if isinstance(self.grid, LocalGrid) else None,
        )

    def _run_round(self, phase: Phase, phase_round: int, cohorts: Cohorts) -> None:
        began = time.perf_counter()
        self.round += 1
        if self.clock is not None:
            cohorts.available = self.clock.open_round(self.round)
        rounds = phase.experiment.num_rounds
        config = protocol.request_config(phase.text, phase.index, phase_round, rounds, self.terms)
        # A strategy that is not ours must not move buffers: it is handed the parameters.
        passing = () if isinstance(phase.strategy, CohortStrategy) else phase.buffers
        arrays = protocol.to_record(parameters(self.arrays, passing))
        messages = list(phase.strategy.configure_train(self.round, arrays, config, self.grid))
        attach_buffers(self.arrays, passing, messages)
        attach(self.state, messages)
        fates = self._fates(messages, cohorts, phase.work)
        num_classes = self.federation.data.spec.num_classes
        log = RoundLog(self.round, cohorts.census, fates, num_classes)
        if self.round == 1:
            log.incidents += cohorts.census.incidents
        sent = log.sent(messages)
        if not sent and (not messages or log.failures):
            self._check_success(phase, log, began)
        if sent:
            self._learn(phase, log, phase.longest_first(sent, cohorts.census), began)
        self._train_at_server(phase, phase_round)
        log.record("server", self.training.numbers)
        self._finish_round(phase, log, began)

    def _units(self, phase: Phase, sent: list[Message], census: Census) -> list[Span]:
        """Return which requests are answered together, as positions; decided in the first round of a phase."""
        clients = [census.client_at[message.metadata.dst_node_id] for message in sent]
        if phase.index not in self.fused_size:
            by_sums = isinstance(phase.strategy, CohortStrategy)
            size = fused_size(phase.experiment, self.grid, by_sums, clients)
            self.fused_size[phase.index] = size
        return fused_units(phase.experiment, clients, self.fused_size[phase.index])

    def _learn(self, phase: Phase, log: RoundLog, sent: list[Message], began: float) -> None:
        """Let clients train, and take what comes of it into the global arrays and the method's state.

        Raises:
            RunFailed: Too few of them succeeded; the round is recorded first.
        """
        carried = {protocol.ARRAYS: self.arrays, protocol.STATE: self.state}
        units = self._units(phase, sent, log.census)
        part, aggregate = train_cohort(
            self.grid, phase, log, sent, units, carried, self.ends.catch_up
        )
        self._check_success(phase, log, began)
        if isinstance(phase.strategy, CohortStrategy):
            sums, weight = part[protocol.ARRAYS]
            arrays = phase.strategy.conclude(log.round, self.arrays, sums, weight, phase.buffers)
            self._accept(with_server_noise(phase.experiment, arrays, weight, log.round), log)
            log.record("strategy", phase.strategy.numbers())
        elif aggregate is not None:
            self._accept(aggregate, log)
        self.state = merged(self.state, part)

    def _train_at_server(self, phase: Phase, phase_round: int) -> None:
        """Let the server train, where labels are at the server; `phase_round` is 0 before the first round of the run."""
        if self.clock is not None:
            labels = len(self.federation.server_rows)
            images = phase.experiment.server_recipe.images_shown(labels, labels)
            self.clock.train_at_server(images)
        self.arrays = self.training.train(
            phase.experiment,
            phase.network,
            self.arrays,
            server_round=self.round,
            phase=phase.index,
            phase_round=phase_round,
        )

    def _fates(self, messages: list[Message], cohorts: Cohorts, work: Floats) -> Fates:
        """Return what virtual time makes of the clients that are asked, each with so many images to train on."""
        if self.clock is None:
            return {}
        census = cohorts.census
        clients = [census.client_at[message.metadata.dst_node_id] for message in messages]
        # A reply brings back what a request takes along: weights and state.
        size = protocol.num_bytes(messages[0].content) if messages else 0
        seconds = self.clock.devices.round_seconds(work, size, size)
        return self.clock.close_round(self.round, clients, cohorts.sample, seconds)

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

    def _accept(self, arrays: NamedArrays, log: RoundLog) -> None:
        """Take the strategy's answer as the new global arrays; keep the old ones if the answer is not finite.

        Raises:
            RunFailed: It is not for the second time on end: no later one will be.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            taken = {name: as_type(arrays[name], old) for name, old in self.arrays.items()}
        if not (is_finite(arrays) and is_finite(taken)):
            problem = f"the strategy's answer to round {log.round} is not finite"
            if self.is_kept:
                raise RunFailed(f"{problem}, nor was the one before")
            self.is_kept = True
            clients = [row.client for row in log.clients if row.status == "ok"]
            log.incidents.append(
                f"{problem}: the old model is kept; the round averaged clients {some(clients)}"
            )
            return
        self.is_kept = False
        log.update_norm = update_norm(self.arrays, taken)
        self.arrays = taken

    def _check_success(self, phase: Phase, log: RoundLog, began: float) -> None:
        """Record a round in which too few clients succeeded, and end the run with the first reason."""
        log.close()
        asked = log.num_ok + len(log.failures)
        least = phase.experiment.server.min_success
        if log.num_ok and log.num_ok >= least * asked:
            return
        seconds = time.perf_counter() - began
        failed = Finished(phase, log, self.arrays, self.ema, self.state, self._now, seconds)
        self.ends.record_failed(failed)
        first = log.failures[0].reason if log.failures else "no client was sampled"
        if log.num_ok == 0:
            raise RunFailed(
                f"all clients of round {log.round} failed; the first one said:\n{first}"
            )
        raise RunFailed(
            f"{log.num_ok} of {asked} clients of round {log.round} succeeded, "
            f"fewer than server.min_success = {least:g} of them; the first failure was:\n{first}"
        )

    def _finish_round(self, phase: Phase, log: RoundLog, began: float) -> None:
        server = phase.experiment.server
        decay = warm_decay(server.ema_decay, log.round - 1)
        self.ema = move_average(self.ema, self.arrays, decay, phase.buffers)
        if isinstance(self.grid, LocalGrid):
            self.grid.states.commit()
        finished = Finished(
            phase,
            log,
            self.arrays,
            self.ema,
            self.state,
            self._now,
            time.perf_counter() - began,
            is_evaluated=(
                log.round % server.evaluate_every == 0 or log.round == self.experiment.num_rounds
            ),
            snapshot=self._snapshot(),
        )
        self.ends.add(finished)

    @property
    def _now(self) -> float:
        """The virtual clock; NaN without one."""
        return NAN if self.clock is None else self.clock.now
