"""The parallel grid: it hands parts of the cohort to long-lived Ray actors as they become idle."""

import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import Message, RecordDict

from fedssl.core.errors import RunFailed
from fedssl.engine.backlog import Backlog, num_parts
from fedssl.engine.client_grid import Result, do_nothing
from fedssl.engine.local_grid import IMPATIENT, Apps, LocalGrid, Patience
from fedssl.engine.plan import AS_MANY_AS_FIT, Node, Wish, WorkerPlan, plan_workers
from fedssl.engine.ray.pool import Order, Payload, Pool, explain
from fedssl.engine.ray.start import INLINE_BYTES, RayCluster
from fedssl.engine.ray.witness import Record
from fedssl.engine.worker import Done, Job, Rules
from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import Reduction
from fedssl.exchange.sums import Span

RAYS_INLINE_BYTES = 100 * 1024
"""In a Ray that somebody else started, contents smaller than this (bytes) travel inside a call; see `INLINE_BYTES`."""

Submit = Callable[[Any, Span], Any]
"""A function that hands a part to an actor and returns the call."""


@dataclass
class _Call:
    """A call that a worker has not answered yet.

    Args:
        worker: Number of the worker.
        span: The part of the cohort that the worker runs.
        ask_at: Time (seconds of `time.monotonic`) at which the grid next asks the worker about its progress.
    """

    worker: int
    span: Span
    ask_at: float


class RayGrid(LocalGrid):
    """Run clients on Ray actors.

    The grid packs a round's contents once. It hands parts of the cohort's tree to idle workers, the longest parts
    first, and the workers hand back their sums. Nothing polls: the driver sleeps in `ray.wait`.

    The grid replaces a lost worker and runs the worker's unfinished units again. It asks workers that take long about
    their progress, and replaces a worker whose client hangs.

    Args:
        apps: The client apps.
        num_clients: K, the number of clients in all.
        wish: The workers that the experiment asks for.
        most_workers: No more workers than this are of use, so no more are started. None: there is no limit.
        address: Address of a Ray cluster that runs already. None: use the Ray of this process, or start one on this
            machine.
        patience: How long the grid waits for a client, and how often it tries one again.

    Raises:
        InputError: The wish asks for more GPUs or memory than Ray sees, or there is no Ray at the address.
        RunFailed: Ray does not start.
    """

    def __init__(
        self,
        apps: Apps,
        num_clients: int,
        wish: Wish = AS_MANY_AS_FIT,
        *,
        most_workers: int | None = None,
        address: str | None = None,
        patience: Patience = IMPATIENT,
    ) -> None:
        super().__init__(num_clients)
        self._patience = patience
        self._ray = RayCluster(address)
        self._unit_seconds: float | None = None
        self._contents = _Contents(INLINE_BYTES if self._ray.is_ours else RAYS_INLINE_BYTES)
        try:
            self._plan = plan_workers(wish, _nodes(), most_workers)
            self._pool = Pool(apps, self._plan)
        except BaseException:
            self._ray.close()  # no caller can close a grid whose constructor failed
            raise

    @property
    def plan(self) -> WorkerPlan:
        """The number of actors and the resources of each."""
        return self._plan

    @property
    def num_workers(self) -> int:
        """The number of actors."""
        return len(self._pool)

    @property
    def has_gpus(self) -> bool:
        """Whether clients train on GPUs."""
        return self._plan.gpus > 0

    def describe_workers(self) -> list[dict[str, Any]]:
        """Wait until all actors are ready; return the device, GPU ids, process id and node of each."""
        return self._pool.describe()

    def close(self) -> None:
        """End the actors. End Ray, too, if this grid started it."""
        try:
            self._pool.close()
        finally:
            self._ray.close()

    def recording(self, record: Record | None) -> AbstractContextManager[None]:
        """Return a context within which Ray's witness writes to a run's record if Ray ends this process."""
        return self._ray.witness.recording(record)

    def map(
        self,
        function: Callable[..., Result],
        arguments: Sequence[tuple[Any, ...]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Call a function on the workers, once for each tuple of arguments; return the results in order.

        Raises:
            RunFailed: A call failed more often than the grid's patience allows: the function raised an error, took too
                long, or lost its worker.
        """
        results: dict[int, Result] = {}
        backlog = Backlog(len(arguments), len(arguments), self._patience.retries)

        def submit(actor: Any, span: Span) -> Any:
            return actor.call.remote(function, arguments[span[0]])

        limit = self._patience.for_clients(1)
        for span, result, reason in self._dispatch(backlog, submit, timeout, lambda unit: limit):
            if reason:
                raise RunFailed(f"{function.__module__}.{function.__name__} failed: {reason}")
            results[span[0]] = result
        return [results[i] for i in range(len(arguments))]

    def _work_off(
        self,
        messages: Sequence[Message],
        units: Sequence[Span],
        reduction: Reduction | None,
        holdings: Sequence[Holding] | None,
        timeout: float | None,
        meanwhile: Callable[[], None],
    ) -> Iterator[tuple[Span, Done | str]]:
        """Yield each part of the cohort with its worker's result, or with the reason why it has no result."""
        clients = [self._client(message) for message in messages]
        rules = Rules(self._run_id, self._num_clients, self._patience.retries, reduction)

        def submit(actor: Any, span: Span) -> Any:
            contents = {}
            jobs = []
            for start, stop in units[slice(*span)]:
                unit = []
                for i in range(start, stop):
                    key, found = self._contents.pack(messages[i].content)
                    contents[key] = found
                    state = self.states.get(clients[i])
                    held = holdings[i] if holdings else None
                    unit.append(Job(messages[i].metadata, key, clients[i], state, held))
                jobs.append(tuple(unit))
            return actor.run.remote(Order(tuple(jobs), contents, rules))

        def limit(unit: int) -> float:
            start, stop = units[unit]
            return self._patience.for_clients(stop - start)

        count = num_parts(len(units), len(self._pool), self._unit_seconds)
        backlog = Backlog(len(units), count, self._patience.retries)
        try:
            for span, done, reason in self._dispatch(backlog, submit, timeout, limit, meanwhile):
                if reason:
                    yield span, reason
                    continue
                self._unit_seconds = done.seconds / (span[1] - span[0])
                self.incidents += done.notes
                for client, state in done.states:
                    self.states.stage(client, state)
                yield span, done
        finally:
            self._contents.forget()

    @property
    def _run_id(self) -> int:
        return self.run.run_id

    def _dispatch(
        self,
        backlog: Backlog,
        submit: Submit,
        timeout: float | None,
        limit: Callable[[int], float],
        meanwhile: Callable[[], None] = do_nothing,
    ) -> Iterator[tuple[Span, Any, str]]:
        """Hand parts to idle workers until no part is left; yield each part's result, or why it has no result.

        Args:
            backlog: The parts.
            submit: Hands a part to an actor.
            timeout: Seconds for all parts.
            limit: Returns the seconds that a unit may take.
            meanwhile: The caller's own work while the first parts run; called once.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        running: dict[Any, _Call] = {}

        def hand_out() -> None:
            while backlog and self._pool.idle:
                worker, span = self._pool.idle.pop(0), backlog.take()
                call = submit(self._pool[worker], span)
                running[call] = _Call(worker, span, time.monotonic() + limit(span[0]))

        try:
            self._pool.welcome()
            hand_out()
            meanwhile()
            while backlog or running:
                hand_out()
                ask_at = min((call.ask_at for call in running.values()), default=math.inf)
                answered = self._pool.wait(list(running), min(deadline, ask_at))
                if answered is not None:
                    call = running.pop(answered)
                    outcome = self._collect(answered, call, backlog)
                    hand_out()  # first, so that no worker waits while the caller uses the outcome
                    yield from outcome
                elif time.monotonic() >= deadline:
                    yield from self._give_up(running, backlog, f"no reply within {timeout:g} s")
                elif time.monotonic() >= ask_at:
                    yield from self._stop_overdue(running, backlog, limit)
        finally:
            # Calls are left here if the caller does not read the iterator to its end.
            for reference, call in running.items():
                self._pool.idle_after(reference, call.worker)
            self.incidents += self._pool.incidents
            self._pool.incidents.clear()

    def _collect(self, answered: Any, call: _Call, backlog: Backlog) -> list[tuple[Span, Any, str]]:
        """Return the result of an answered call, or the units that have failed for good."""
        try:
            result = ray.get(answered)
        except ray.exceptions.RayTaskError as error:
            self._pool.idle.append(call.worker)
            return self._lost(call, None, explain(error), backlog)
        except ray.exceptions.RayError as error:
            self._pool.replace(call.worker)
            return self._lost(call, None, explain(error), backlog)
        self._pool.idle.append(call.worker)
        return [(call.span, result, "")]

    def _stop_overdue(
        self, running: dict[Any, _Call], backlog: Backlog, limit: Callable[[int], float]
    ) -> list[tuple[Span, Any, str]]:
        """Ask workers that take long about their progress, and replace each worker whose unit takes too long."""
        failed = []
        for reference, call in list(running.items()):
            if time.monotonic() < call.ask_at:
                continue
            progress = self._pool.progress(call.worker)
            unit = call.span[0] + (0 if progress is None else progress[0])
            patience = limit(unit)
            if progress is not None and progress[1] < patience:
                call.ask_at = time.monotonic() + patience - progress[1]
                continue
            del running[reference]
            self._pool.replace(call.worker)
            culprit = None if progress is None else unit
            failed += self._lost(call, culprit, f"no reply within {patience:g} s", backlog)
        return failed

    def _lost(
        self, call: _Call, culprit: int | None, reason: str, backlog: Backlog
    ) -> list[tuple[Span, Any, str]]:
        start, stop = call.span
        units = f"unit {start}" if stop - start == 1 else f"units {start} to {stop - 1}"
        self.incidents.append(f"worker {call.worker}, {units}: {reason}")
        return [((unit, unit + 1), None, reason) for unit in backlog.lost(call.span, culprit)]

    def _give_up(
        self, running: dict[Any, _Call], backlog: Backlog, reason: str
    ) -> list[tuple[Span, Any, str]]:
        """Replace the late workers; return all parts and units that have no result."""
        late = [(call.span, None, reason) for call in running.values()]
        for call in running.values():
            self._pool.replace(call.worker)
        running.clear()
        return late + [((unit, unit + 1), None, reason) for unit in backlog.drop()]


def _nodes() -> list[Node]:
    """Return the cores, GPUs and memory of each machine in the cluster."""
    return [
        Node(there.get("CPU", 0.0), there.get("GPU", 0.0), there.get("memory", math.inf))
        for there in (node["Resources"] for node in ray.nodes() if node["Alive"])
    ]


class _Contents:
    """Pickle each content of a round once, however many messages share it.

    Args:
        inline_bytes: Contents with fewer bytes than this (less a tenth) travel inside the calls; larger contents go
            through Ray's object store.
    """

    def __init__(self, inline_bytes: int) -> None:
        self._inline_bytes = inline_bytes
        self._serial = 0
        self._packed: dict[int, tuple[RecordDict, str, Payload]] = {}

    def pack(self, content: RecordDict) -> tuple[int, tuple[str, Payload]]:
        """Return the (key, (name, payload)) of a content; the same object is pickled only once."""
        key = id(content)
        if key not in self._packed:
            data = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
            self._serial += 1
            payload = data if len(data) < self._inline_bytes * 9 // 10 else [ray.put(data)]
            # Hold the content, because its id is only unique while it lives.
            self._packed[key] = (content, str(self._serial), payload)
        _, name, payload = self._packed[key]
        return key, (name, payload)

    def forget(self) -> None:
        """Let go of all contents, once the round is over."""
        self._packed.clear()
