"""Run an experiment on this machine: the composition of federation, engine, strategy and clients."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence

import torch
from flwr.serverapp import Grid

from fedssl.app.interrupts import Interrupts, put_handlers_back
from fedssl.clients.client_app import app
from fedssl.clients.fused_app import train_together
from fedssl.clients.local_data import simulated_federation
from fedssl.core.errors import FedsslError, InputError, RunFailed
from fedssl.core.extras import remedy_for, require
from fedssl.core.machine import MB, available_cores, available_memory
from fedssl.core.processes import InBackground
from fedssl.engine.local_grid import Apps, LocalGrid, Patience
from fedssl.engine.plan import Node, Wish, WorkerPlan, plan_workers, slots_on_a_gpu
from fedssl.engine.ray.witness import Record
from fedssl.exchange.census import Census, refuse_private
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.system.devices import Devices, Floats
from fedssl.record.rows import Observer, Outcome
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import EVENTS, LOCK
from fedssl.record.snapshot import Snapshot
from fedssl.server.app import serve
from fedssl.server.privacy import check_privacy
from fedssl.server.server_training import check_server_method
from fedssl.server.virtual_time import check_deadline, cohorts_of, make_clock, round_seconds
from fedssl.strategies.base import strategy_of
from fedssl.strategies.keeping import KeptStrategy
from fedssl.training.network import build_network
from fedssl.views.trackers.base import check_tracker

log = logging.getLogger(__name__)

RAYS_SHARE = 0.7
"""Of a machine's memory that Ray gives to workers; the rest is its object store's (2.55)."""


class Engine:
    """The workers of this machine, kept between runs so that only the first one waits for them.

    Use it as a context manager; `run` any number of experiments.
    """

    def __init__(self) -> None:
        self._grid: InBackground[LocalGrid] | None = None
        self._made_for: object = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the workers."""
        if self._grid is not None:
            grid, self._grid = self._grid, None
            grid.end(_close)

    def start(self, experiment: Experiment) -> None:
        """Begin to start the workers that an experiment will want, and return at once."""
        refuse_private(experiment)
        if experiment.engine.kind != "flower":
            self.close()
            self._grid = InBackground(lambda: _make_grid(experiment))
            self._made_for = _workers_of(experiment)

    def run(
        self,
        experiment: Experiment,
        observers: Sequence[Observer] = (),
        resume: Snapshot | None = None,
    ) -> Outcome:
        """Run one experiment on the engine it names.

        Args:
            experiment: What to run.
            observers: Told of everything as it happens.
            resume: Go on after this; None begins.

        Raises:
            InputError: The experiment asks for what is not there.
            RunFailed: The run could not go on.
        """
        check_engine(experiment)
        refuse_private(experiment)
        logging.getLogger("flwr").setLevel(logging.ERROR)  # observers say what its lines would
        if experiment.engine.kind == "flower":
            self.close()
            return _run_under_flower(experiment, observers, resume)
        grid = self._grid_for(experiment)
        with grid.recording(_record_of(observers)):
            return serve(experiment, grid, observers, resume)

    def _grid_for(self, experiment: Experiment) -> LocalGrid:
        if self._grid is None or self._made_for != _workers_of(experiment):
            self.start(experiment)
        assert self._grid is not None
        grid = self._grid.result()
        put_handlers_back()  # Ray's start took them
        grid.restart(experiment.federation.clients)
        grid.states.memory = int(experiment.engine.state_memory * MB)
        return grid


def _record_of(observers: Sequence[Observer]) -> Record | None:
    """Return where a run is recorded, if one of its observers does so."""
    for observer in observers:
        if isinstance(observer, RunDirectory):
            return Record(observer.path, observer.path / EVENTS, observer.path / LOCK)
    return None


def _close(grid: LocalGrid) -> None:
    grid.close()
    grid.states.close()


def _workers_of(experiment: Experiment) -> object:
    """Return what the workers depend on."""
    measured = experiment.engine.memory_per_worker == "measured"
    what = experiment.to_client_json() if measured else ""
    return experiment.engine, experiment.largest_sample, what


def check_engine(experiment: Experiment) -> None:
    """Raise `InputError` if what its engine needs is not installed."""
    if experiment.engine.kind != "serial":
        require("ray", "engine.kind", f"{experiment.engine.kind!r}")


def check(experiment: Experiment) -> None:
    """Raise `InputError` for whatever can be known to be wrong before any worker is started.

    What its engine needs is another question: a deployment has none. The data is prepared and its checksums compared, the federation drawn, and every phase's network and strategy built.
    """
    check_tracker(experiment)
    if experiment.engine.address is None:  # what a cluster has, only that knows
        plan_here(experiment)
    experiment.data.prepare(verify=True)
    federation = simulated_federation(experiment)
    if experiment.federation.private:
        census = Census.unknown(experiment.federation.clients)
    else:
        census = Census.of_simulation(federation)
    clock = make_clock(experiment)
    if clock is not None:
        try:
            clock.open_round(1)  # reads what availability rests on
        except RunFailed as error:
            raise InputError("system.availability", str(error)) from None
    for phase in experiment.plans:
        network = build_network(phase.model, phase.method, federation.data.spec, phase.seed)
        check_privacy(phase, network)
        KeptStrategy(strategy_of(phase).build(cohorts_of(phase, census))).kept()
        check_server_method(phase)
        if clock is not None:
            check_deadline(phase, census, clock, federation.data.spec)


def virtual_seconds(experiment: Experiment) -> tuple[Devices, Floats] | None:
    """Return the virtual devices and the seconds that a round of the first phase takes each; None without them."""
    clock = make_clock(experiment)
    if clock is None:
        return None
    federation = simulated_federation(experiment)
    census = Census.of_simulation(federation)
    phase = experiment.plans[0]
    return clock.devices, round_seconds(phase, census, clock, federation.data.spec)


def _make_grid(experiment: Experiment) -> LocalGrid:
    clients, engine = experiment.federation.clients, experiment.engine
    apps = Apps(app, train_together)
    patience = Patience(engine.retries, engine.client_timeout)
    if engine.kind == "serial":
        from fedssl.engine.serial_grid import SerialGrid

        device = "cpu" if engine.gpus_per_worker == 0 else None
        return SerialGrid(apps, clients, device, patience)
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


@contextlib.contextmanager
def _ray_needed(kind: str) -> Iterator[None]:
    """Turn what a damaged installation of Ray raises on its import into an `InputError`."""
    try:
        yield
    except Exception as error:
        raise InputError(
            "engine.kind",
            f"{kind!r} needs ray, which cannot be imported here: {type(error).__name__}: {error}",
            f"install it anew ({remedy_for()}), or use --engine serial",
        ) from error


def _wish(experiment: Experiment) -> Wish:
    """Return what an experiment asks of workers; measured, where it says so."""
    engine = experiment.engine
    share, memory = engine.gpus_per_worker, engine.memory_per_worker
    if memory != "measured":
        megabytes = None if memory is None else memory * MB
        return Wish(engine.workers, share, engine.cpu_workers, megabytes)
    from fedssl.clients.measuring import measured_bytes

    if share == 0 or not torch.cuda.is_available():
        taken = measured_bytes(experiment, "cpu")
        log.info("a worker with the largest client takes %.0f MB", taken / MB)
        return Wish(engine.workers, share, engine.cpu_workers, taken)
    taken = measured_bytes(experiment, "cuda:0")
    slots = slots_on_a_gpu(taken, torch.cuda.get_device_properties(0).total_memory)
    log.info("a worker with the largest client takes %.0f MB of a GPU: %d fit", taken / MB, slots)
    return Wish(engine.workers, share or 1 / slots, engine.cpu_workers)


def plan_here(experiment: Experiment) -> WorkerPlan:
    """Return the workers a run would use, by what there is on this machine."""
    engine = experiment.engine
    if engine.kind == "serial":
        return WorkerPlan(1, 1.0, float(torch.cuda.is_available()))
    return plan_workers(_wish(experiment), [this_machine()], experiment.largest_sample)


def room_here(experiment: Experiment, runs: int | None = None) -> WorkerPlan:
    """Return how many runs like this one fit this machine side by side, one worker each; no cohort limits them.

    Args:
        experiment: Its ``[engine]`` says what a worker takes.
        runs: So many, over what it says of workers.

    Raises:
        InputError: There is no room for so many.
    """
    wish = dataclasses.replace(_wish(experiment), cpu_workers=0)
    if runs is not None:
        wish = dataclasses.replace(wish, workers=runs)
    return plan_workers(wish, [this_machine()])


def this_machine() -> Node:
    """Return what torch and the system see here."""
    memory = available_memory() * RAYS_SHARE
    return Node(available_cores(), torch.cuda.device_count(), memory)


def _run_under_flower(
    experiment: Experiment, observers: Sequence[Observer], resume: Snapshot | None
) -> Outcome:
    with _ray_needed("flower"):
        from fedssl.engine.flower import simulate

    plan = plan_here(experiment)
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

    # In a thread, so that Ctrl-C reaches this one: Flower's would end the clients and leave its server waiting for them.
    threading.Thread(target=flower).start()
    try:
        while not done.wait(1.0):
            put_handlers_back()  # the start of Flower's Ray took them
    except KeyboardInterrupt:
        interrupts.asked = True
        done.wait()
        raise
    if not outcomes:
        raise RunFailed("Flower's simulation runtime ended before its server had begun")
    if isinstance(outcomes[0], BaseException):
        raise outcomes[0]
    return outcomes[0]
