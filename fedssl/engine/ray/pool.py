"""Start, replace and watch Ray's actors, and know which of them are idle."""

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
"""A worker that is not ready after this many seconds counts as late; if no worker is ready by then, the run fails."""

MOST_STARTS = 5
"""After this many workers were lost in a row during their start, starting another is of no use."""

ANSWER_TIMEOUT = 10.0
"""A worker must answer a question about its progress within this many seconds."""

Payload = bytes | list[Any]
"""A pickled content, or a list of one reference to it. Ray leaves a reference inside a list to the actor to resolve."""


@dataclass(frozen=True)
class Order:
    """The units for one call of a worker.

    Args:
        units: The units, in the order in which they run.
        contents: The name and the payload of each content that the units share, by key.
        rules: How the worker runs the units.
    """

    units: tuple[Unit, ...]
    contents: Mapping[int, tuple[str, Payload]]
    rules: Rules


class Pool:
    """The actors of a grid, by number.

    Args:
        apps: The client apps.
        plan: The number of actors and the resources of each.
    """

    def __init__(self, apps: Apps, plan: WorkerPlan) -> None:
        self.idle: list[int] = []
        """Numbers of the idle actors. A caller that hands work to an actor removes its number."""
        self.incidents: list[str] = []
        """Faults that did not stop the run. A caller that records them clears the list."""
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
        """Wait until all actors are ready; return the device, GPU ids, process id and node of each.

        Raises:
            RunFailed: An actor is not ready within `START_TIMEOUT`.
        """
        calls = [actor.describe.remote() for actor in self._actors]
        try:
            described: list[dict[str, Any]] = ray.get(calls, timeout=START_TIMEOUT)
        except TimeoutError:
            raise RunFailed(
                f"not all workers were ready within {START_TIMEOUT:g} s; {_describe_free_resources()}"
            ) from None
        return described

    def idle_after(self, call: Any, worker: int) -> None:
        """Count an actor as idle once it has answered a call whose result nobody will read."""
        self._busy[call] = worker

    def wait(self, calls: Collection[Any], until: float) -> Any | None:
        """Wait for one of the calls and return it; None if `until` has come or an actor has become idle.

        Args:
            calls: The calls that the caller waits for.
            until: Time (seconds of `time.monotonic`) until which to wait.

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
                raise RunFailed(
                    f"no worker was ready within {START_TIMEOUT:g} s; {_describe_free_resources()}"
                )
            self._note_late()
            return None
        if ready[0] not in self._busy:
            return ready[0]
        self._welcome(ready[0], self._busy.pop(ready[0]))
        return None

    def welcome(self) -> None:
        """Count all actors that have become ready as idle, without waiting; raise the errors of `wait`."""
        if self._busy:
            ready, _ = ray.wait(list(self._busy), num_returns=len(self._busy), timeout=0)
            for call in ready:
                self._welcome(call, self._busy.pop(call))

    def replace(self, worker: int) -> None:
        """End an actor, even one at work, and start another in its place."""
        ray.kill(self._actors[worker])
        self._spawn(worker)

    def progress(self, worker: int) -> tuple[int, float] | None:
        """Return the place of the unit that an actor runs and its seconds so far; None if the actor does not answer."""
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
        # A list hides the reference: Ray would resolve it, with all imports that takes, before it makes the actor.
        self._actors[worker] = kind.remote([self._apps], self._plan.cpus_per_client)
        call = self._actors[worker].describe.remote()
        self._busy[call] = worker
        self._ready_by[call] = time.monotonic() + START_TIMEOUT

    def _note_late(self) -> None:
        """Record each late actor once as an incident; the other actors do its work, and the run only takes longer."""
        for call, by in list(self._ready_by.items()):
            if time.monotonic() >= by:
                del self._ready_by[call]
                worker = f"worker {self._busy[call]}"
                self.incidents.append(
                    f"{worker} was not ready within {START_TIMEOUT:g} s; {_describe_free_resources()}"
                )

    def _welcome(self, call: Any, worker: int) -> None:
        self._ready_by.pop(call, None)
        try:
            ray.get(call)
        except ray.exceptions.RayTaskError:
            pass  # nobody waits for this call's result, and the actor still works
        except ray.exceptions.RayError as error:
            self._lost_in_a_row += 1
            self.replace(worker)  # before the error, so that a later run finds the pool complete
            if self._lost_in_a_row >= MOST_STARTS:
                self._lost_in_a_row = 0
                raise RunFailed(f"workers do not start: {explain(error)}") from None
            return
        self._lost_in_a_row = 0
        self.idle.append(worker)


def explain(error: Exception) -> str:
    """Return the reason that the record gives for a failed call; a lack of memory is named as such."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"out of memory: {error}"
    if isinstance(error, ray.exceptions.RayTaskError):
        return str(error)
    return f"worker lost: {error}"


def _describe_free_resources() -> str:
    there, free = ray.cluster_resources(), ray.available_resources()
    counts = (f"{free.get(k, 0):g} of {there.get(k, 0):g} {k}s are free" for k in ("CPU", "GPU"))
    return ", ".join(counts)
