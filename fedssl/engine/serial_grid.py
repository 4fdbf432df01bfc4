"""The reference grid: one client after the other in this process."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
from flwr.app import Message

from fedssl import protocol
from fedssl.aggregation import Span
from fedssl.engine.local_grid import (
    IMPATIENT,
    Apps,
    LocalGrid,
    Patience,
    Result,
    nothing,
    single_units,
)
from fedssl.engine.reduction import Answer, CohortSums
from fedssl.engine.worker import Done, Job, Rules, Worker, reduce_unit

Asked = ParamSpec("Asked")
Answered = TypeVar("Answered")


class SerialGrid(LocalGrid):
    """Run every client in turn.

    Args:
        apps: What runs clients.
        num_clients: K.
        device: Where clients train; by default the first GPU, if there is one.
        patience: What it bears with. A client that hangs is stopped where Python can stop it: in the main thread, and
            not inside a call that never returns.
    """

    def __init__(
        self,
        apps: Apps,
        num_clients: int,
        device: str | None = None,
        patience: Patience = IMPATIENT,
    ) -> None:
        super().__init__(num_clients)
        self._patience = patience
        device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        one, together = apps.one, apps.together
        if patience.client_timeout is not None:
            one = _limited(one, patience.client_timeout)
            together = together and _limited(together, patience.client_timeout)
        self._worker = Worker(one, device, together)

    def stream(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = nothing,
    ) -> Iterator[Message]:
        """Yield replies in the order of the messages; past the timeout no further client is begun."""
        meanwhile()
        sent = self._stamped(messages)
        for _, replies in self._replies(sent, single_units(sent), timeout):
            yield from replies

    def reduce(
        self,
        messages: Sequence[Message],
        sums: CohortSums,
        *,
        units: Sequence[Span] | None = None,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = nothing,
    ) -> Iterator[Answer]:
        """Yield answers in the order of the messages; see `LocalGrid.reduce`."""
        meanwhile()
        sent = self._stamped(messages)
        for place, replies in self._replies(sent, units or single_units(sent), timeout):
            yield from reduce_unit(sums, place, replies)

    def map(
        self,
        function: Callable[..., Result],
        arguments: Sequence[tuple[Any, ...]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Call a function once for each tuple of arguments; results in order."""
        return [function(*each) for each in arguments]

    def _replies(
        self, messages: list[Message], units: Sequence[Span], timeout: float | None
    ) -> Iterator[tuple[int, Sequence[Message]]]:
        deadline = None if timeout is None else time.monotonic() + timeout
        for place, (first, behind) in enumerate(units):
            unit = messages[first:behind]
            if deadline is not None and time.monotonic() > deadline:
                reason = f"not begun within {timeout:g} s"
                yield place, [protocol.error_reply(m, reason, raised=False) for m in unit]
                continue
            done = self._run_unit(unit)
            for client, state in done.states:
                self.states.stage(client, state)
            yield place, done.replies

    def _run_unit(self, messages: Sequence[Message]) -> Done:
        clients = [self._client(message) for message in messages]
        jobs = tuple(
            Job(message.metadata, place, client, self.states.get(client))
            for place, (message, client) in enumerate(zip(messages, clients, strict=True))
        )
        contents = {place: message.content for place, message in enumerate(messages)}
        rules = Rules(self._run.run_id, self._num_clients, self._patience.retries, None)
        return self._worker.run([jobs], contents, rules)


def _limited(app: Callable[Asked, Answered], seconds: float) -> Callable[Asked, Answered]:
    """Return an app that raises `TimeoutError` if it takes longer, where it can be interrupted."""

    def run(*args: Asked.args, **kwargs: Asked.kwargs) -> Answered:
        with _alarm(seconds):
            return app(*args, **kwargs)

    return run


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in this block after some seconds; in the main thread only, for signals arrive nowhere else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no reply within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
