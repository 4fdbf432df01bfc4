"""The reference grid: it runs one client after the other in this process."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
from flwr.app import Message

from fedssl.engine.client_grid import Result
from fedssl.engine.local_grid import IMPATIENT, Apps, LocalGrid, Patience
from fedssl.engine.worker import Done, Job, Rules, Worker
from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import Reduction
from fedssl.exchange.sums import Span

Asked = ParamSpec("Asked")
Answered = TypeVar("Answered")


class SerialGrid(LocalGrid):
    """Run every client in turn.

    Args:
        apps: The apps that run clients.
        num_clients: Number of clients, K.
        device: Device on which clients train, or the devices of a client's team with commas between them; by default the
            first GPU, or the CPU if there is no GPU.
        patience: Retries and time limit of a client. Python can stop a client that hangs only in the main thread, and
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
        self._device = device.split(",")[0]
        one, together = apps.one, apps.together
        if patience.client_timeout is not None:
            one = _limited(one, lambda *asked: patience.for_clients(1))
            together = together and _limited(
                together, lambda messages, contexts: patience.for_clients(len(messages))
            )
        self._worker = Worker(one, device, together)

    def map(
        self,
        function: Callable[..., Result],
        arguments: Sequence[tuple[Any, ...]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Call a function once for each tuple of arguments, in this process; see `ClientGrid.map`."""
        return [function(self._device, *each) for each in arguments]

    @property
    def has_gpus(self) -> bool:
        """Whether clients train on a GPU."""
        return self._device != "cpu"

    def _work_off(
        self,
        messages: Sequence[Message],
        units: Sequence[Span],
        reduction: Reduction | None,
        holdings: Sequence[Holding] | None,
        timeout: float | None,
        meanwhile: Callable[[], None],
    ) -> Iterator[tuple[Span, Done | str]]:
        """Run one unit after the other; no unit begins after the timeout."""
        meanwhile()
        deadline = None if timeout is None else time.monotonic() + timeout
        rules = Rules(self._run.run_id, self._num_clients, self._patience.retries, reduction)
        for number, (start, stop) in enumerate(units):
            span, unit = (number, number + 1), messages[start:stop]
            if deadline is not None and time.monotonic() > deadline:
                yield span, f"not begun within {timeout:g} s"
                continue
            clients = [self._client(message) for message in unit]
            held = holdings[start:stop] if holdings else [None] * len(unit)
            jobs = tuple(
                Job(message.metadata, place, client, self.states.get(client), held[place])
                for place, (message, client) in enumerate(zip(unit, clients, strict=True))
            )
            contents = {place: message.content for place, message in enumerate(unit)}
            done = self._worker.run([jobs], contents, rules)
            for client, state in done.states:
                self.states.stage(client, state)
            yield span, done


def _limited(
    app: Callable[Asked, Answered], limit: Callable[Asked, float]
) -> Callable[Asked, Answered]:
    """Return an app that raises `TimeoutError` if it takes longer than a limit (seconds) and can be interrupted."""

    def run(*args: Asked.args, **kwargs: Asked.kwargs) -> Answered:
        with _alarm(limit(*args, **kwargs)):
            return app(*args, **kwargs)

    return run


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in this block after some seconds; only in the main thread, because only it gets signals."""
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
