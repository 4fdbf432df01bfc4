"""Run an experiment on this machine: put federation, engine, strategy and clients together."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence

import torch
from flwr.serverapp import Grid

from fedssl.app.engine_choice import Choice, choose_engine, on_engine
from fedssl.app.interrupts import Interrupts, put_handlers_back
from fedssl.clients.client_app import app
from fedssl.clients.fused_app import train_together
from fedssl.clients.local_data import simulated_federation
from fedssl.core.errors import FedsslError, InputError, RunFailed
from fedssl.core.extras import install_command, require
from fedssl.core.machine import MB, available_cores, available_memory
from fedssl.core.processes import InBackground, path_for_other_processes
from fedssl.core.user_code import naming_user_code
from fedssl.data.federation import Federation
from fedssl.data.sites import prepare_sites, refuse_leak
from fedssl.data.sources.own_images import reading_of
from fedssl.engine.local_grid import Apps, LocalGrid, Patience
from fedssl.engine.plan import (
    Node,
    Wish,
    WorkerPlan,
    devices_of_worker,
    plan_workers,
    slots_on_a_gpu,
)
from fedssl.engine.ray.witness import Record
from fedssl.exchange.census import Census, refuse_private
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.system.devices import Devices, Floats
from fedssl.record.own_modules import own_modules
from fedssl.record.rows import Observer, Outcome
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import EVENTS, LOCK
from fedssl.record.snapshot import Snapshot
from fedssl.server.accountant import with_chosen_noise
from fedssl.server.app import serve
from fedssl.server.carry_over import check_network
from fedssl.server.evaluation import check_evaluator
from fedssl.server.phase import check_strategy
from fedssl.server.privacy import check_privacy
from fedssl.server.server_training import (
    check_all_rates,
    check_client_labels,
    check_left_weights,
    check_server_method,
    check_statistics,
)
from fedssl.server.virtual_time import check_deadline, cohorts_of, make_clock, typical_seconds
from fedssl.strategies.base import strategy_of
from fedssl.strategies.keeping import KeptStrategy
from fedssl.views.trackers.base import check_tracker

log = logging.getLogger(__name__)

RAYS_SHARE = 0.7
"""Ray gives this share of a machine's memory to workers; the rest belongs to its object store (ray 2.55)."""


class Engine:
    """The workers of this machine, kept between runs so that only the first run waits for their start.

    Use the engine as a context manager, and `run` any number of experiments with it.
    """

    def __init__(self) -> None:
        self._grid: InBackground[LocalGrid] | None = None
        self._made_for: object = None
        self._turn = threading.RLock()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._grid is not None:
            grid, self._grid = self._grid, None
            grid.end(_close)

    def start(self, experiment: Experiment) -> None:
        """Begin to start the workers for an experiment, and return at once.

        Nothing starts yet for an experiment that leaves its engine open: `run` chooses one.
        """
        refuse_private(experiment)
        if experiment.engine.kind not in ("auto", "flower"):
            self.close()
            self._grid = InBackground(lambda: _make_grid(experiment))
            self._made_for = _workers_of(experiment)

    def run(
        self,
        experiment: Experiment,
        observers: Sequence[Observer] = (),
        resume: Snapshot | None = None,
    ) -> Outcome:
        """Run one experiment on the engine that it names. Threads take turns, since they share the workers.

        Args:
            experiment: The experiment to run.
            observers: Observers that are told of every event as it happens.
            resume: Snapshot after which the run goes on; None: begin with round 1.

        Raises:
            InputError: The experiment asks for something that this machine does not have.
            RunFailed: The run could not go on.
        """
        check_engine(experiment)
        refuse_private(experiment)
        logging.getLogger("flwr").setLevel(logging.ERROR)  # observers show what Flower would log
        with self._turn:
            if experiment.engine.kind == "flower":
                self.close()
                return _run_under_flower(experiment, observers, resume)
            grid = self._grid_for(experiment)
            with grid.recording(_record_of(observers)):
                return serve(experiment, grid, observers, resume)

    def _grid_for(self, experiment: Experiment) -> LocalGrid:
        if experiment.engine.kind == "auto":
            experiment = self._with_engine(experiment)
        if self._grid is None or self._made_for != _workers_of(experiment):
            self.start(experiment)
        assert self._grid is not None
        grid = self._grid.result()
        put_handlers_back()  # Ray's start has replaced the signal handlers
        grid.restart(experiment.federation.clients)
        grid.states.memory = int(experiment.engine.state_memory * MB)
        return grid

    def _with_engine(self, experiment: Experiment) -> Experiment:
        """Return an experiment with the engine on which it runs: workers of Ray that run already, or what is chosen."""
        with_ray = on_engine(experiment, "ray")
        if self._grid is not None and self._made_for == _workers_of(with_ray):
            return with_ray
        choice = choice_here(experiment)
        log.info("engine %s, because %s", choice.experiment.engine.kind, choice.reason)
        return choice.experiment


def _record_of(observers: Sequence[Observer]) -> Record | None:
    """Return where a run is recorded; None if no observer records it."""
    for observer in observers:
        if isinstance(observer, RunDirectory):
            return Record(observer.path, observer.path / EVENTS, observer.path / LOCK)
    return None


def _close(grid: LocalGrid) -> None:
    grid.close()
    grid.states.close()


def _workers_of(experiment: Experiment) -> object:
    """Return a value that is equal for two experiments if they can use the same workers."""
    measured = experiment.engine.memory_per_worker == "measured"
    what = experiment.to_client_json() if measured else ""
    # Workers find the user's modules in the folders that were searched when they started.
    return experiment.engine, experiment.largest_sample, what, path_for_other_processes()


def check_engine(experiment: Experiment) -> None:
    """Raise `InputError` if the experiment's engine needs a library that is not installed."""
    if experiment.engine.kind in ("ray", "flower"):
        require("ray", "engine.kind", f"{experiment.engine.kind!r}")


def check_experiment(experiment: Experiment) -> None:
    """Raise `InputError` for every mistake that can be found before any worker starts.

    The check prepares the data and compares its checksums, draws the federation, and builds the network and the
    strategy of every phase. It does not check what the engine needs (see `check_engine`), because a deployment has no
    engine.
    """
    # Check what costs little first: the tracker and the workers.
    check_tracker(experiment)
    if experiment.engine.address is None:  # the resources of a cluster are not known here
        plan_workers_here(experiment)
    # Check the data, the federation and every phase; here the user's own code runs for the first time.
    own = ", ".join(own_modules(experiment))
    with naming_user_code(f"the check of {own}" if own else ""):
        prepared = experiment.data.prepare(verify=True)
        if experiment.federation.sites is not None:
            _check_sites(experiment, has_test=prepared.part("test") is not None)
        check_phases(experiment, simulated_federation(experiment))


def _check_sites(experiment: Experiment, *, has_test: bool) -> None:
    """Raise `InputError` if the images of a site cannot be used, or are those that the server tests on.

    Args:
        experiment: An experiment with sites.
        has_test: Whether the server's data has test images of its own.
    """
    sites = experiment.federation.sites
    assert sites is not None
    kind, _, path = experiment.data.kind.partition(":")
    refuse_leak(sites, path if kind in ("folder", "npz") else "", has_test=has_test)
    data = experiment.data.dataset(experiment.seed)
    prepare_sites(sites, data, reading_of(experiment.data), verify=True)


def check_phases(experiment: Experiment, federation: Federation) -> None:
    """Raise `InputError` for every mistake in a phase, in what follows on what, or in the times of [system].

    Args:
        experiment: The experiment.
        federation: The federation that it describes.
    """
    if experiment.federation.private:
        census = Census.unknown(experiment.federation.clients)
    else:
        census = Census.of_simulation(federation)
    clock = make_clock(experiment)
    if clock is not None:
        try:
            clock.open_round(1)  # reads the files on which availability rests
        except RunFailed as error:
            raise InputError("system.availability", str(error)) from None
    for number, phase in enumerate(with_chosen_noise(experiment).plans):
        with _within_phase(number if experiment.phases else None):
            network = check_network(phase, federation.data.spec)
        check_privacy(phase, network)
        check_all_rates(phase, network)
        check_strategy(phase, network)
        KeptStrategy(strategy_of(phase).build(cohorts_of(phase, census))).kept()
        check_server_method(phase)
        check_client_labels(phase, census, is_first=number == 0)
        check_left_weights(phase, network)
        check_statistics(phase, network)
        with _within_phase(number if experiment.phases else None):
            check_evaluator(phase, federation)
        if clock is not None:
            check_deadline(phase, census, clock, federation.data.spec)


@contextlib.contextmanager
def _within_phase(number: int | None) -> Iterator[None]:
    """Let an `InputError` name the phase whose settings are wrong; None: the experiment has no phases."""
    try:
        yield
    except InputError as error:
        raise error if number is None else error.within(f"phases[{number}].") from None


def virtual_seconds(experiment: Experiment) -> tuple[Devices, Floats] | None:
    """Return the virtual devices and the seconds each takes for a round of the first phase; None without devices."""
    clock = make_clock(experiment)
    if clock is None:
        return None
    federation = simulated_federation(experiment)
    census = Census.of_simulation(federation)
    phase = experiment.plans[0]
    return clock.devices, typical_seconds(phase, census, clock, federation.data.spec)


def _make_grid(experiment: Experiment) -> LocalGrid:
    clients, engine = experiment.federation.clients, experiment.engine
    threads = engine.cpus_per_client * experiment.train.threads
    if engine.cpus_per_client > 1 and threads > available_cores():
        log.warning(
            "engine.cpus_per_client = %d with train.threads = %d: %d threads on %d cores, which is slower",
            engine.cpus_per_client, experiment.train.threads, threads, available_cores(),
        )  # fmt: skip
    apps = Apps(app, train_together)
    patience = Patience(engine.retries, engine.client_timeout)
    if engine.kind == "serial":
        from fedssl.engine.serial_grid import SerialGrid

        return SerialGrid(apps, clients, _devices_here(experiment), patience)
    with _ray_needed(engine.kind):
        from fedssl.engine.ray.grid import RayGrid

    grid = RayGrid(
        apps,
        clients,
        _wish(experiment),
        most_workers=experiment.largest_sample,
        address=engine.address,
        patience=patience,
    )
    if grid.plan.warning:
        log.warning("%s", grid.plan.warning)
    return grid


def _devices_here(experiment: Experiment) -> str:
    """Return the device of clients that train in this process, or the devices of their team with commas between them.

    Raises:
        InputError: The team is larger than the machine.
    """
    engine = experiment.engine
    if engine.has_teams:
        wish = Wish(1, engine.gpus_per_worker, cpus_per_client=engine.cpus_per_client)
        plan_workers(wish, [this_machine()])
    gpus = 1.0 if engine.gpus_per_worker is None else engine.gpus_per_worker
    has_cuda = torch.cuda.is_available()
    return devices_of_worker(gpus, engine.cpus_per_client, has_cuda)


@contextlib.contextmanager
def _ray_needed(kind: str) -> Iterator[None]:
    """Turn any error from the import of a damaged Ray into an `InputError`."""
    try:
        yield
    except Exception as error:
        raise InputError(
            "engine.kind",
            f"{kind!r} needs ray, which cannot be imported here: {type(error).__name__}: {error}",
            f"install ray again ({install_command()}), or use --engine serial",
        ) from error


def _wish(experiment: Experiment) -> Wish:
    """Return the workers that an experiment asks for; measure a worker's memory if the experiment says so."""
    engine = experiment.engine
    share, memory = engine.gpus_per_worker, engine.memory_per_worker
    if memory != "measured":
        megabytes = None if memory is None else memory * MB
        return Wish(engine.workers, share, engine.cpu_workers, megabytes, engine.cpus_per_client)
    from fedssl.clients.measuring import measured_bytes

    plans = with_chosen_noise(experiment).plans
    if share == 0 or not torch.cuda.is_available():
        taken = measured_bytes(plans, "cpu")
        taken *= engine.cpus_per_client
        log.info("a worker with the largest client takes %.0f MB", taken / MB)
        return Wish(engine.workers, share, engine.cpu_workers, taken, engine.cpus_per_client)
    taken = measured_bytes(plans, "cuda:0")
    slots = slots_on_a_gpu(taken, torch.cuda.get_device_properties(0).total_memory)
    log.info("a worker with the largest client takes %.0f MB of a GPU: %d fit", taken / MB, slots)
    return Wish(engine.workers, share or 1 / slots, engine.cpu_workers)


def choice_here(experiment: Experiment) -> Choice:
    """Return the engine on which an experiment would run on this machine, and why."""
    federation = simulated_federation(experiment)
    return choose_engine(experiment, federation, lambda: len(plan_workers_here(experiment)))


def plan_workers_here(experiment: Experiment) -> WorkerPlan:
    """Return the workers that a run would use on this machine; those of Ray if the experiment leaves its engine open."""
    engine = experiment.engine
    if engine.kind == "serial":
        devices = _devices_here(experiment).split(",")
        gpus = float(sum(device != "cpu" for device in devices))
        return WorkerPlan(1, float(len(devices)), gpus, cpus_per_client=engine.cpus_per_client)
    return plan_workers(_wish(experiment), [this_machine()], experiment.largest_sample)


def count_runs_that_fit(experiment: Experiment, runs: int | None = None) -> WorkerPlan:
    """Return how many runs of an experiment fit this machine side by side, with one worker each.

    The size of the cohort does not limit their number.

    Args:
        experiment: The experiment; its ``[engine]`` section says what a worker takes.
        runs: Number of runs, in place of ``engine.workers``; None: as ``engine.workers`` says.

    Raises:
        InputError: The machine has no room for so many runs.
    """
    wish = dataclasses.replace(_wish(experiment), cpu_workers=0)
    if runs is not None:
        wish = dataclasses.replace(wish, workers=runs)
    return plan_workers(wish, [this_machine()])


def this_machine() -> Node:
    """Return the cores, GPUs and memory that torch and the system see on this machine."""
    memory = available_memory() * RAYS_SHARE
    return Node(available_cores(), torch.cuda.device_count(), memory)


def _run_under_flower(
    experiment: Experiment, observers: Sequence[Observer], resume: Snapshot | None
) -> Outcome:
    with _ray_needed("flower"):
        from fedssl.engine.flower import simulate

    plan = plan_workers_here(experiment)
    if plan.warning:
        log.warning("%s", plan.warning)
    outcomes: list[Outcome | BaseException] = []
    interrupts = Interrupts()
    done = threading.Event()

    def server(grid: Grid) -> None:
        try:
            outcomes.append(serve(experiment, grid, [*observers, interrupts], resume))
        except BaseException as error:
            outcomes.append(error)

    def flower() -> None:
        try:
            simulate(server, app, experiment.federation.clients, plan, record=_record_of(observers))
        except FedsslError as error:
            outcomes.append(error)
        except Exception as error:
            outcomes.append(RunFailed(f"Flower's simulation runtime failed: {error}"))
        finally:
            done.set()

    # Flower runs in a thread, so that Ctrl-C reaches this one. In the main thread, Flower would end the clients on
    # Ctrl-C and leave its server waiting for them.
    threading.Thread(target=flower).start()
    try:
        while not done.wait(1.0):
            put_handlers_back()  # the start of Flower's Ray has replaced the signal handlers
    except KeyboardInterrupt:
        interrupts.asked = True
        done.wait()
        raise
    if not outcomes:
        raise RunFailed("Flower's simulation runtime ended before its server had begun")
    if isinstance(outcomes[0], BaseException):
        raise outcomes[0]
    return outcomes[0]
