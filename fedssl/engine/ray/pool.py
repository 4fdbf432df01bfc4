"""Ray's actors: started, replaced, asked; which are idle, and which call is answered next."""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from fedssl.core.errors import RunFailed
from fedssl.engine.local_grid import Apps
from fedssl.engine.plan import WorkerPlan
from fedssl.engine.ray.actor import Actor
from fedssl.engine.worker import Rules, Unit

START_TIMEOUT = 180.0
"""Seconds in which a worker must be ready when none is."""

MOST_STARTS = 5
"""Workers lost in a row before one was ready, after which starting another is of no use."""

ANSWER_TIMEOUT = 10.0
"""Seconds in which a worker must say what it is doing, when asked."""

Payload = bytes | list[Any]
"""A pickled content, or a list of the one reference to it, which Ray then leaves to us to resolve."""


@dataclass(frozen=True)
class Order:
    """Units for one call of a worker, and the contents that they share, by key: its name and what it is."""

    units: tuple[Unit, ...]
    contents: Mapping[int, tuple[str, Payload]]
    rules: Rules


class Pool:
    """The actors of a grid, by number.

    Args:
        apps: What runs clients.
        plan: How many actors, and what each is given.
    """

    def __init__(self, apps: Apps, plan: WorkerPlan) -> None:
        self.idle: list[int] = []
        """Actors that have nothing to do; whoever gives them something takes them off."""
        self.incidents: list[str] = []
        """What went wrong and did not stop anybody; whoever records it takes it out."""
        self._ready_by: dict[Any, float] = {}
        self._apps = ray.put(apps)
        self._plan = plan
        self._busy: dict[Any, int] = {}
        self._lost_in_a_row = 0
        self._actors: list[Any] = [None] * len(plan)
        for worker in range(len(plan)):
            self._spawn(worker)

    def __len__(self) -> int:
        return len(self._actors)

    def __getitem__(self, worker: int) -> Any:
        """Return an actor's handle."""
        return self._actors[worker]

    def describe(self) -> list[dict[str, Any]]:
        """Return the device, GPU ids, process id and node of every actor; waits until all are ready."""
        calls = [actor.describe.remote() for actor in self._actors]
        try:
            described: list[dict[str, Any]] = ray.get(calls, timeout=START_TIMEOUT)
        except TimeoutError:
            raise RunFailed(
                f"not all workers were ready within {START_TIMEOUT:g} s; {_resources()}"
            ) from None
        return described

    def idle_after(self, call: Any, worker: int) -> None:
        """Let an actor count as idle once it has answered a call that nobody waits for."""
        self._busy[call] = worker

    def wait(self, calls: Collection[Any], until: float) -> Any | None:
        """Return a call that is answered; None at a time of `time.monotonic`, or when an actor has fallen idle.

        Raises:
            RunFailed: No actor can be started.
        """
        ours = [*calls, *self._busy]
        stuck = time.monotonic() + START_TIMEOUT if not calls and not self.idle else math.inf
        late = min(self._ready_by.values(), default=math.inf)
        seconds = min(until, stuck, late) - time.monotonic()
        ready, _ = ray.wait(ours, timeout=None if seconds == math.inf else max(0.0, seconds))
        if not ready:
            if time.monotonic() >= stuck:
                raise RunFailed(f"no worker was ready within {START_TIMEOUT:g} s; {_resources()}")
            self._note_late()
            return None
        if ready[0] not in self._busy:
            return ready[0]
        self._welcome(ready[0], self._busy.pop(ready[0]))
        return None

    def welcome(self) -> None:
        """Let all that have become ready count as idle, and wait for nobody; raises as `wait` does."""
        if self._busy:
            ready, _ = ray.wait(list(self._busy), num_returns=len(self._busy), timeout=0)
            for call in ready:
                self._welcome(call, self._busy.pop(call))

    def replace(self, worker: int) -> None:
        """End an actor, whatever it is doing, and start another in its place."""
        ray.kill(self._actors[worker])
        self._spawn(worker)

    def progress(self, worker: int) -> tuple[int, float] | None:
        """Return the place of the unit that an actor runs and the seconds it has taken; None if it does not say."""
        try:
            answer: tuple[int, float] | None = ray.get(
                self._actors[worker].progress.remote(), timeout=ANSWER_TIMEOUT
            )
        except (ray.exceptions.RayError, TimeoutError):
            return None
        return answer

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _spawn(self, worker: int) -> None:
        kind = ray.remote(
            num_cpus=self._plan.cpus,
            num_gpus=self._plan.gpus_of(worker),
            memory=int(self._plan.memory),
            concurrency_groups={"watch": 1},
        )(Actor)
        # Within a list: Ray would resolve a bare reference, with all the imports it takes, before the actor is made.
        self._actors[worker] = kind.remote([self._apps])
        call = self._actors[worker].describe.remote()
        self._busy[call] = worker
        self._ready_by[call] = time.monotonic() + START_TIMEOUT

    def _note_late(self) -> None:
        """Say of actors that others work without them, once: the run only takes longer."""
        for call, by in list(self._ready_by.items()):
            if time.monotonic() >= by:
                del self._ready_by[call]
                worker = f"worker {self._busy[call]}"
                self.incidents.append(
                    f"{worker} was not ready within {START_TIMEOUT:g} s; {_resources()}"
                )

    def _welcome(self, call: Any, worker: int) -> None:
        self._ready_by.pop(call, None)
        try:
            ray.get(call)
        except ray.exceptions.RayTaskError:
            pass  # of a call that nobody waits for; the actor is well
        except ray.exceptions.RayError as error:
            self._lost_in_a_row += 1
            self.replace(worker)  # first: whoever runs next on this pool finds it whole
            if self._lost_in_a_row >= MOST_STARTS:
                self._lost_in_a_row = 0
                raise RunFailed(f"workers do not start: {explain(error)}") from None
            return
        self._lost_in_a_row = 0
        self.idle.append(worker)


def explain(error: Exception) -> str:
    """Return what a lost worker is called in the record; for want of memory in so many words."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"out of memory: {error}"
    if isinstance(error, ray.exceptions.RayTaskError):
        return str(error)
    return f"worker lost: {error}"


def _resources() -> str:
    there, free = ray.cluster_resources(), ray.available_resources()
    counts = (f"{free.get(k, 0):g} of {there.get(k, 0):g} {k}s are free" for k in ("CPU", "GPU"))
    return ", ".join(counts)
