"""Run an experiment at the server: its phases, their rounds, and a snapshot after each round to resume from."""

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from flwr.app import Message
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import nn

from fedssl.clients.local_data import simulated_federation
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.kept import Keeps
from fedssl.core.text import last_line
from fedssl.core.user_code import place_in_traceback
from fedssl.data.federation import Federation
from fedssl.data.terms import Terms
from fedssl.engine.client_grid import ClientGrid
from fedssl.exchange import protocol
from fedssl.exchange.buffers import attach_buffers, without_buffers
from fedssl.exchange.census import Census, Cohorts
from fedssl.exchange.waiting import after_seconds
from fedssl.experiment.experiment import Experiment
from fedssl.metrics.balanced import Balanced, measure_balanced
from fedssl.record.description import remarks_on_systems
from fedssl.record.judges import judges_of
from fedssl.record.leaks import remark_on_weights
from fedssl.record.remarks import most_frequent_share
from fedssl.record.rows import NAN, PHASE, Observer, Outcome
from fedssl.record.snapshot import Snapshot
from fedssl.server.accountant import account_for, with_chosen_noise
from fedssl.server.bound_numbers import with_bound_numbers
from fedssl.server.carry_over import last_network
from fedssl.server.client_memory import (
    COUNTED_ROUNDS,
    can_resume,
    cannot_resume,
    clients_keep,
    refuse_other_origin,
)
from fedssl.server.cohort_training import train_cohort
from fedssl.server.counted_rounds import CountedRounds
from fedssl.server.evaluation import Judging, check_evaluator, predict_models
from fedssl.server.fusing import Fusing
from fedssl.server.method_state import attach_state, by_record
from fedssl.server.model import ModelKeeper
from fedssl.server.phase import Phase, check_strategy
from fedssl.server.phase_state import PhaseState
from fedssl.server.privacy import check_privacy
from fedssl.server.round_ends import Finished, RoundEnds
from fedssl.server.round_log import Fates, RoundLog
from fedssl.server.server_training import ServerTraining, check_all_rates
from fedssl.server.stopping import Stopping
from fedssl.server.virtual_time import cohorts_of, fates_of, first_work_of, make_clock, work_of
from fedssl.strategies.base import strategy_of
from fedssl.strategies.keeping import KeptStrategy
from fedssl.training.correction import corrects_by_state

NODES_TIMEOUT = 300.0
"""The server waits this long (seconds) for all K clients to connect to a grid that does not simulate them."""

logger = logging.getLogger("fedssl.server")


class ServerRun:
    """A run of an experiment over a grid.

    Args:
        experiment: What to run.
        grid: The grid that reaches the experiment's clients.
        observers: They are told of everything as it happens.
        numbers: Node id -> the client number that is bound to it, on a grid that does not simulate clients.
    """

    def __init__(
        self,
        experiment: Experiment,
        grid: ClientGrid,
        observers: Sequence[Observer],
        numbers: Mapping[int, int],
    ) -> None:
        self._experiment = experiment
        self._plans = with_chosen_noise(experiment).plans
        self._grid = grid
        self._observers = observers
        self._numbers = numbers
        self._federation: Federation = simulated_federation(experiment)
        self._spec = self._federation.data.spec
        for plan in self._plans:
            check_evaluator(plan, self._federation)
        self._round = 0
        self._model = ModelKeeper()
        self._strategy: FlowerStrategy | None = None
        self._phase_state = PhaseState()
        self._carried: Mapping[str, float] = {}
        self._training = ServerTraining(self._federation.server_shard())
        self._fusing = Fusing(self._spec.shape)
        self._clock = make_clock(experiment)
        self._stopping = Stopping(experiment)
        self._ends = RoundEnds(grid, observers, len(self._federation.held_out))
        self._began = 0.0
        self._untold: Sequence[str] = ()
        """Incidents of the census, until the first round records them; a run that goes on takes a census of its own."""
        # Only clients with private data are sent the terms, because they must prepare their images to fit them.
        self._terms = Terms.of(self._federation.data) if experiment.federation.private else None
        self._resumable = can_resume(experiment, grid, self._spec)
        # If clients keep their state themselves, they must know which of their rounds count.
        keeps = not grid.is_simulation and clients_keep(experiment, self._spec)
        self._counted = CountedRounds(experiment.server.checkpoint_every) if keeps else None

    def _keepers(self) -> dict[str, Keeps]:
        """Return every part that keeps something between rounds, by its name in checkpoints."""
        parts: dict[str, Keeps] = {
            "model": self._model,
            "strategy": KeptStrategy(self._strategy),
            "phase-state": self._phase_state,
            "training": self._training,
        }
        if self._counted is not None:
            parts[COUNTED_ROUNDS] = self._counted
        return parts if self._clock is None else parts | {"clock": self._clock}

    def start(self, resume: Snapshot | None) -> Outcome:
        """Run every phase that is left, and return the outcome of the run.

        Args:
            resume: The run goes on after this snapshot; None: it begins.

        Raises:
            InputError: The run cannot be resumed over this grid.
            RunFailed: Too few clients connected, answered the census, or succeeded in a round; or the weights diverged.
        """
        for observer in self._observers:
            observer.began(self._experiment, self._federation)
        leak = remark_on_weights(self._experiment, self._federation)
        for remark in [*remarks_on_systems(self._experiment), *([leak] if leak else [])]:
            logger.warning("%s", remark)
        self._began = time.perf_counter()
        census = self._take_census()
        self._untold = census.incidents
        cohorts = cohorts_of(self._experiment, census)
        if resume is not None:
            self._restore(resume, cohorts)
            for observer in self._observers:
                observer.resumed(resume)
        try:
            for index in range(len(self._plans)):
                if not self._stopping.reason:
                    self._run_phase(index, cohorts)
        except BaseException:
            self._ends.rescue()  # records a round that was over before the error
            raise
        seconds = time.perf_counter() - self._began
        share = most_frequent_share(self._federation.held_out.labels)
        judges = judges_of(self._experiment, self._federation)
        outcome = Outcome(
            self._model.model,
            tuple(self._ends.rows),
            seconds,
            share,
            judges,
            class_names=tuple(self._federation.data.class_names),
            stopped=self._stopping.reason,
            balanced=self._measure_balanced(),
            account=account_for(self._experiment),
        )
        for observer in self._observers:
            observer.ended(outcome)
        return outcome

    def _measure_balanced(self) -> dict[str, Balanced]:
        """Return what the final models are worth on the held-out images if every class counts the same."""
        plan, model = self._experiment.plans[-1], self._model.model
        judging = Judging.of(plan.to_client_json(), plan.server.evaluator)
        labels = self._federation.held_out.labels
        models, timeout = [model.arrays, model.ema], plan.server.timeout
        server, ema = predict_models(judging, models, len(labels), self._grid, timeout)
        return {
            "server": measure_balanced(server, labels),
            "ema": measure_balanced(ema, labels),
        }

    def _take_census(self) -> Census:
        if self._grid.is_simulation:
            return Census.of_simulation(self._federation)
        wanted = self._experiment.federation.clients
        deadline = time.monotonic() + NODES_TIMEOUT
        told = -1
        while len(nodes := list(self._grid.get_node_ids())) < wanted:
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"{len(nodes)} of {wanted} clients connected in {NODES_TIMEOUT:g} s"
                )
            if len(nodes) != told:
                told = len(nodes)
                until = after_seconds(deadline - time.monotonic())
                self._tell_waiting(f"{told} of {wanted} clients are connected", until)
            time.sleep(0.2)
        server = self._experiment.server
        return Census.by_query(
            with_bound_numbers(
                lambda messages: self._grid.send_and_receive(messages, timeout=server.timeout),
                self._numbers,
            ),
            nodes,
            self._plans[0].to_client_json(),
            wanted,
            self._terms,
            min_success=server.min_success,
            max_examples=server.max_client_examples,
            numbers=self._numbers,
            on_wait=self._tell_waiting,
        )

    def _tell_waiting(self, what: str, until: datetime | None) -> None:
        for observer in self._observers:
            observer.waiting(what, until)

    def _run_phase(self, index: int, cohorts: Cohorts) -> None:
        experiment = self._plans[index]
        done = sum(row.phase == index for row in self._ends.rows)
        if done == experiment.num_rounds:
            return
        network = experiment.build_network(self._spec)
        check_privacy(experiment, network)
        check_all_rates(experiment, network)
        check_strategy(experiment, network)
        cohorts.sample = experiment.federation.sample
        if done == 0:
            self._begin_phase(index, network, cohorts)
        assert self._strategy is not None
        work, first = work_of(experiment, cohorts.census), first_work_of(experiment, cohorts.census)
        text = experiment.to_client_json()
        phase = Phase(index, experiment, text, network, self._strategy, work, first)
        if done == 0 and not (index and self._plans[index - 1].server_trains):
            # Nobody has trained the classifier yet, and clients may give pseudo-labels with it.
            self._train_at_server(phase, 0, is_measured=False)
        for phase_round in range(done + 1, experiment.num_rounds + 1):
            if self._must_stop(index):
                break
            self._run_round(phase, phase_round, cohorts)
        self._ends.catch_up()

    def _must_stop(self, index: int) -> bool:
        """Return whether the run ends before the next round of a phase."""
        if self._stopping.needs_evaluations(index):
            self._ends.catch_up()
            self._stopping.watch_accuracy(index, self._ends.rows)
        return bool(self._stopping.reason)

    def _begin_phase(self, index: int, network: nn.Module, cohorts: Cohorts) -> None:
        """Make the global model, the state and the strategy with which a phase begins; `network` is written to."""
        experiment = self._plans[index]
        previous = last_network(experiment, self._spec, self._model.model.arrays)
        carried = self._model.begin_phase(experiment, network, self._spec, previous)
        teacher = None if previous is None else previous.classifier
        self._phase_state.begin_phase(experiment.recipe, network, self._spec, teacher)
        self._carried = {} if carried is None else carried.numbers()
        # A strategy may remember something of each weight by its name, which is worth nothing if the weight begins anew.
        last = self._plans[index - 1].strategy
        goes_on = carried is not None and carried.keeps_names and experiment.strategy == last
        if self._strategy is None or not goes_on or corrects_by_state(last):
            self._strategy = strategy_of(experiment).build(cohorts)

    def _run_round(self, phase: Phase, phase_round: int, cohorts: Cohorts) -> None:
        began = time.perf_counter()
        self._round += 1
        if self._clock is not None:
            cohorts.available = self._clock.open_round(self._round)
        messages = self._requests(phase, phase_round, cohorts.census)
        sizes = self._request_sizes(phase, messages, cohorts.census)
        fates = self._fates_of(phase, messages, sizes, cohorts)
        log = RoundLog(self._round, cohorts.census, fates, self._spec.num_classes)
        log.incidents += self._untold
        self._untold = ()
        if phase_round == 1:
            log.record(PHASE, self._carried)
        sent = log.sent(messages, sizes)
        if not sent and (not messages or log.failures):
            self._check_success(phase, log, began)
        if sent:
            self._learn(phase, log, messages, phase.longest_first(sent, cohorts.census), began)
        # Clients measure the statistics of static normalizations after their steps; clients without steps do not.
        self._train_at_server(phase, phase_round, is_measured=log.tally().num_steps > 0)
        log.record("server", self._training.numbers)
        self._finish_round(phase, phase_round, log, began)

    def _requests(self, phase: Phase, phase_round: int, census: Census) -> list[Message]:
        """Return the strategy's requests to its cohort, with the global model and the method's state in them."""
        rounds, model = phase.experiment.num_rounds, self._model.model
        config = protocol.request_config(phase.text, phase.index, phase_round, rounds, self._terms)
        # A strategy of Flower's must not move buffers, so it gets the parameters only.
        passing = () if phase.is_ours else phase.buffers
        arrays = protocol.to_record(without_buffers(model.arrays, passing))
        messages = list(phase.strategy.configure_train(self._round, arrays, config, self._grid))
        attach_buffers(model.arrays, passing, messages)
        attach_state(by_record(phase.slots, model.state), messages)
        self._phase_state.attach(messages, census, is_simulation=self._grid.is_simulation)
        if self._counted is not None:
            self._counted.attach(messages, census)
        return messages

    def _request_sizes(
        self, phase: Phase, messages: Sequence[Message], census: Census
    ) -> list[int]:
        """Return the bytes of each request's arrays that travel; many requests share one content, which is measured once."""
        contents = {id(message.content): message.content for message in messages}
        whole = {key: protocol.num_bytes(content) for key, content in contents.items()}
        clients = [census.client_at[message.metadata.dst_node_id] for message in messages]
        return [
            whole[id(message.content)]
            - self._phase_state.saved_bytes(message, client)
            - phase.bytes_saved_down(client)
            for message, client in zip(messages, clients, strict=True)
        ]

    def _learn(
        self,
        phase: Phase,
        log: RoundLog,
        asked: Sequence[Message],
        sent: Sequence[Message],
        began: float,
    ) -> None:
        """Let clients train, and update the global model with the aggregate of their replies.

        Args:
            phase: The phase.
            log: What the server sees of the round.
            asked: The strategy's requests, in its order.
            sent: The requests that are sent, those that take longest first.
            began: Time at which the round began.

        Raises:
            RunFailed: Too few clients succeeded, and the round is recorded first; or the weights diverged.
        """
        model = self._model.model
        returning = phase.sent_back(model.arrays)
        carried = {protocol.ARRAYS: returning, **by_record(phase.slots, model.state)}
        clients = [log.census.client_at[message.metadata.dst_node_id] for message in sent]
        units = self._fusing.units(phase, self._grid, clients)
        sums, aggregate = train_cohort(
            self._grid, phase, log, asked, sent, units, carried, self._ends.catch_up
        )
        self._check_success(phase, log, began)
        if aggregate is not None:
            self._model.accept({**model.arrays, **aggregate}, log)
        self._model.merge_state(phase.slots, sums, log.census)
        self._phase_state.note(log)
        if self._counted is not None:
            self._counted.note(log)

    def _train_at_server(self, phase: Phase, phase_round: int, *, is_measured: bool) -> None:
        """Let the server train, if it does in this phase; the arguments are those of `ServerTraining.train`."""
        if self._clock is not None and phase.experiment.server_trains:
            labels = len(self._federation.server_rows)
            self._clock.train_at_server(phase.experiment.server_recipe.work(labels, labels))
        trained = self._training.train(
            phase.experiment,
            phase.network,
            self._model.model.arrays,
            server_round=self._round,
            phase=phase.index,
            phase_round=phase_round,
            is_measured=is_measured,
        )
        self._model.replace(trained)

    def _fates_of(
        self, phase: Phase, messages: Sequence[Message], sizes: Sequence[int], cohorts: Cohorts
    ) -> Fates:
        """Return the outcome of a round in virtual time for each client that is asked; empty without virtual time.

        Args:
            phase: The phase.
            messages: The requests of the round.
            sizes: Bytes of each request's arrays that travel.
            cohorts: How clients are sampled.
        """
        if self._clock is None:
            return {}
        census = cohorts.census
        clients = [census.client_at[message.metadata.dst_node_id] for message in messages]
        # A client that has the phase's state had its first round, and that round counted.
        once = phase.first_work.copy()
        once[sorted(self._phase_state.holders)] = 0
        return fates_of(
            self._clock,
            self._round,
            clients,
            sizes,
            self._reply_bytes(phase),
            cohorts,
            phase.work,
            once,
        )

    def _reply_bytes(self, phase: Phase) -> int:
        """Return the bytes of a reply: the weights that come back, and the state that the server merges."""
        model = self._model.model
        whole = {**phase.sent_back(model.arrays), **model.state}
        return protocol.encoded_bytes(whole) - phase.bytes_saved_up

    def _check_success(self, phase: Phase, log: RoundLog, began: float) -> None:
        """Record the round and end the run if too few clients succeeded.

        Raises:
            RunFailed: No client succeeded, or a smaller share than ``server.min_success``; says the first reason.
        """
        log.close()
        # A client that sat the round out has answered, and is no failure.
        answered = log.num_ok + log.num_inactive
        asked = answered + len(log.failures)
        least = phase.experiment.server.min_success
        if answered and answered >= least * asked:
            return
        seconds = time.perf_counter() - began
        self._ends.record_failed(Finished(phase, log, self._model.model, self._now, seconds))
        first = _brief(log.failures[0].reason) if log.failures else "no client was sampled"
        if answered == 0:
            raise RunFailed(
                f"all clients of round {log.round} failed; the first failure was:\n{first}"
            )
        raise RunFailed(
            f"{answered} of {asked} clients of round {log.round} succeeded, "
            f"fewer than server.min_success = {least:g} of them; the first failure was:\n{first}"
        )

    def _finish_round(self, phase: Phase, phase_round: int, log: RoundLog, began: float) -> None:
        server = phase.experiment.server
        self._model.average(log.round, server.ema_decay, phase.buffers)
        self._grid.states.commit()
        self._stopping.watch_time(phase.index, log.round, time.perf_counter() - self._began)
        if self._counted is not None:
            self._counted.end_round(log.round)
        is_last = phase_round == phase.experiment.num_rounds or bool(self._stopping.reason)
        finished = Finished(
            phase,
            log,
            self._model.model,
            self._now,
            time.perf_counter() - began,
            is_evaluated=is_last or log.round % server.evaluate_every == 0,
            snapshot=self._snapshot(),
        )
        self._ends.add(finished)

    def _snapshot(self) -> Snapshot | None:
        """Return what the run can be resumed from, but for the rows of its rounds; None if it cannot be resumed."""
        if not self._resumable:
            return None
        try:
            kept = {name: part.kept() for name, part in self._keepers().items()}
        except InputError as error:
            # The strategy made an attribute in a round that cannot be kept. The run goes on without checkpoints.
            self._resumable = False
            logger.warning("no further checkpoint is written: %s", error)
            return None
        return Snapshot(
            rounds=(),
            model=self._model.model,
            kept=kept,
            seconds=time.perf_counter() - self._began,
            clients=self._grid.states.to_snapshot,
        )

    def _restore(self, snapshot: Snapshot, cohorts: Cohorts) -> None:
        """Restore the server to what it was when the snapshot was taken."""
        if not self._resumable:
            raise cannot_resume(self._experiment, self._spec)
        refuse_other_origin(self._experiment, self._grid, self._spec, snapshot)
        self._began -= snapshot.seconds
        self._round = snapshot.round
        self._model.model = snapshot.model
        self._ends.rows = list(snapshot.rounds)
        self._strategy = strategy_of(self._plans[snapshot.phase]).build(cohorts)
        for name, part in self._keepers().items():
            part.take_up(snapshot.kept.get(name, {}))
        if not self._grid.is_simulation:
            self._phase_state.forget_holders()
        self._grid.states.restore(snapshot.round, snapshot.clients)

    @property
    def _now(self) -> float:
        """Virtual seconds since the run began; NaN without virtual time."""
        return NAN if self._clock is None else self._clock.now


def _brief(reason: str) -> str:
    """Return why a client failed: the line of the user's code and the error, or else the whole reason with its traceback."""
    place = place_in_traceback(reason)
    return f"{place}: {last_line(reason)}" if place else reason
