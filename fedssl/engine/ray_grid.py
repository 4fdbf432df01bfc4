"""The parallel grid: long-lived Ray actors that are handed chunks of clients as they fall idle."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ray
import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedssl import protocol
from fedssl.engine.local_grid import LocalGrid
from fedssl.engine.plan import WorkerPlan, plan_workers
from fedssl.engine.ray_start import spawn, start_ray

CALL_SECONDS = 0.05
"""Work that a call to an actor should carry at least."""

MOST_CLIENTS = 32
"""Most clients in a call, so that the replies held at once do not grow with m, unless they are tiny."""


@dataclass(frozen=True)
class _Job:
    """One message on its way to a worker, its content apart."""

    message: Message
    content: int
    client: int
    state: bytes | None


@dataclass(frozen=True)
class _Chunk:
    """Jobs for one call of a worker, and where the contents they share are kept."""

    run_id: int
    num_clients: int
    jobs: tuple[_Job, ...]
    contents: dict[int, list[Any]]


class _Worker:
    """An actor: holds the app, and through it the resident model, for its whole life."""

    def __init__(self, app: ClientApp) -> None:
        self._app = app
        self._contents: dict[str, RecordDict] = {}
        gpus = ray.get_gpu_ids()
        self._device = "cuda:0" if gpus and torch.cuda.is_available() else "cpu"

    def describe(self) -> dict[str, Any]:
        """Return what Ray gave this worker; answers once it is ready."""
        return {"device": self._device, "gpu_ids": ray.get_gpu_ids(), "pid": os.getpid()}

    def run(self, chunk: _Chunk) -> tuple[list[tuple[int, Message, bytes | None]], float]:
        """Run a chunk's clients one after the other; return (client, reply, state) of each, and the seconds."""
        began = time.perf_counter()
        contents = self._fetch(chunk.contents)
        answers = []
        for job in chunk.jobs:
            context = protocol.new_context(
                chunk.run_id, job.client, chunk.num_clients, self._device, job.state
            )
            message = protocol.with_content(job.message, contents[job.content])
            reply = protocol.reply_or_explain(message, context, self._app)
            answers.append((job.client, reply, protocol.state_to_bytes(context.state)))
        return answers, time.perf_counter() - began

    def _fetch(self, references: dict[int, list[Any]]) -> dict[int, RecordDict]:
        """Read shared contents; those of the last chunk are kept, for the next is often of the same round."""
        names = {key: reference.hex() for key, (reference,) in references.items()}
        fresh = {
            name: self._contents[name] if name in self._contents else ray.get(references[key][0])
            for key, name in names.items()
        }
        self._contents = fresh
        return {key: fresh[name] for key, name in names.items()}


class RayGrid(LocalGrid):
    """Run clients on Ray actors.

    Weights are put into Ray's object store once a round, whoever shares them; idle actors are handed chunks that
    shrink towards the end of the cohort, so that all finish together. Nothing polls: the driver sleeps in `ray.wait`.

    Args:
        app: The client app.
        num_clients: K.
        workers: Number of actors; ``"auto"`` for as many as fit.
        gpus_per_worker: GPUs of each actor, may be a fraction; None takes what there is.
        most_workers: More than this many are of no use to ``"auto"``.

    Raises:
        InputError: More GPUs are asked for than Ray sees.
    """

    def __init__(
        self,
        app: ClientApp,
        num_clients: int,
        *,
        workers: int | Literal["auto"] = "auto",
        gpus_per_worker: float | None = None,
        most_workers: int | None = None,
    ) -> None:
        super().__init__(num_clients)
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            start_ray()
        resources = ray.cluster_resources()
        self._plan = plan_workers(
            workers,
            gpus_per_worker,
            resources.get("CPU", 1.0),
            resources.get("GPU", 0.0),
            most_workers,
        )
        self._parts = ray.put((_Worker, app))
        self._client_seconds = 0.0
        self._workers = [self._spawn() for _ in range(self._plan.workers)]

    @property
    def plan(self) -> WorkerPlan:
        """Number of actors and what each is given."""
        return self._plan

    def describe_workers(self) -> list[dict[str, Any]]:
        """Return the device, GPU ids and process id of every actor; waits until all are ready."""
        described: list[dict[str, Any]] = ray.get([w.describe.remote() for w in self._workers])
        return described

    def close(self) -> None:
        """End the actors, and Ray if this grid started it."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
        if self._started_ray:
            ray.shutdown()

    def stream(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield replies as chunks of clients finish; a worker has its next chunk before its replies are used."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = self._stamped(messages)[::-1]
        shared = _SharedContents()
        idle = list(range(len(self._workers)))
        running: dict[Any, tuple[int, list[Message]]] = {}

        def dispatch() -> None:
            while waiting and idle:
                worker = idle.pop(0)
                part = [waiting.pop() for _ in range(self._chunk_size(len(waiting)))]
                call = self._workers[worker].run.remote(self._chunk(part, shared))
                running[call] = (worker, part)

        dispatch()
        while running:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(running), num_returns=1, timeout=left)
            if not done:
                yield from self._give_up(running, waiting, timeout)
                return
            worker, part = running.pop(done[0])
            replies = self._collect(done[0], worker, part)
            idle.append(worker)
            dispatch()
            yield from replies

    def _chunk_size(self, left: int) -> int:
        """Return half of each worker's fair share of what is left, but no less than pays for a call.

        A call costs about a millisecond on either side, so small clients travel together: as many as fill `CALL_SECONDS`
        by what clients have taken so far, up to the whole fair share.
        """
        fair_share = -(-left // len(self._workers))
        worth_a_call = int(CALL_SECONDS / self._client_seconds) if self._client_seconds else 1
        return max(1, min(-(-fair_share // 2), MOST_CLIENTS), min(fair_share, worth_a_call))

    def _chunk(self, part: list[Message], shared: "_SharedContents") -> _Chunk:
        jobs, contents = [], {}
        for message in part:
            key, reference = shared.put(message.content)
            contents[key] = [reference]
            client = self._client(message)
            empty = protocol.with_content(message, RecordDict())
            jobs.append(_Job(empty, key, client, self.states.get(client)))
        return _Chunk(self._run.run_id, self._num_clients, tuple(jobs), contents)

    def _collect(self, call: Any, worker: int, part: list[Message]) -> list[Message]:
        """Return the replies of a finished call; those of a dead worker are errors, and it is replaced."""
        try:
            answers, seconds = ray.get(call)
        except ray.exceptions.RayError as error:
            self._workers[worker] = self._spawn()
            return [
                protocol.error_reply(message, f"worker lost: {error}", raised=False)
                for message in part
            ]
        self._client_seconds = seconds / len(answers)
        for client, _, state in answers:
            self.states.stage(client, state)
        return [reply for _, reply, _ in answers]

    def _give_up(
        self,
        running: dict[Any, tuple[int, list[Message]]],
        waiting: list[Message],
        timeout: float | None,
    ) -> Iterator[Message]:
        """Replace the workers that are late and yield an error for every reply that is missing."""
        late = list(waiting)
        for worker, part in running.values():
            ray.kill(self._workers[worker])
            self._workers[worker] = self._spawn()
            late += part
        for message in late:
            yield protocol.error_reply(message, f"no reply within {timeout:g} s", raised=False)

    def _spawn(self) -> Any:
        return spawn(self._parts, self._plan)


class _SharedContents:
    """Contents already in the object store, so that the many messages of a round put theirs once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[RecordDict, Any]] = {}

    def put(self, content: RecordDict) -> tuple[int, Any]:
        """Return (key, reference) of a content; the same object is put once."""
        key = id(content)
        if key not in self._known:
            self._known[key] = (
                content,
                ray.put(content),
            )  # held: an id is only unique while it lives
        return key, self._known[key][1]
