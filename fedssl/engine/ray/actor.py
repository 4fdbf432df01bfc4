"""What Ray makes an actor of. This module imports next to nothing, so that the actor itself can import the rest quickly."""

import os
import pickle
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray

from fedssl.core.processes import quick_imports

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from fedssl.engine.local_grid import Apps
    from fedssl.engine.ray.pool import Order, Payload
    from fedssl.engine.worker import Done

TOKEN = "RAY_AUTH_TOKEN"
"""Environment variable of the token that Ray's processes show each other."""

CONTENTS_KEPT = 2
"""Contents that a worker keeps for its next call, which is often of the same round."""


class Actor:
    """Hold the app, and through it the resident model, for a process's whole life.

    Args:
        apps: One reference to what runs clients, which Ray then leaves to us to resolve.
    """

    def __init__(self, apps: list[Any]) -> None:
        with quick_imports():
            import torch

            from fedssl.engine.worker import Worker

            found: Apps = ray.get(apps[0])
        os.environ.pop(TOKEN, None)  # Ray has read it; what a client starts has no use for it
        gpus = ray.get_gpu_ids()
        self._device = "cuda:0" if gpus and torch.cuda.is_available() else "cpu"
        self._worker = Worker(found.one, self._device, found.together)
        self._contents: dict[str, RecordDict] = {}

    def describe(self) -> dict[str, Any]:
        """Return what Ray gave this worker; answers once it is ready."""
        node = ray.get_runtime_context().get_node_id()
        gpus = ray.get_gpu_ids()
        return {"device": self._device, "gpu_ids": gpus, "pid": os.getpid(), "node": node}

    def run(self, order: "Order") -> "Done":
        """Run an order's clients one after the other."""
        contents = {key: self._content(*found) for key, found in order.contents.items()}
        return self._worker.run(order.units, contents, order.rules)

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call a function of the device and some arguments here."""
        self._worker.busy_since = (0, time.monotonic())
        try:
            return function(self._device, *arguments)
        finally:
            self._worker.busy_since = None

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def progress(self) -> tuple[int, float]:
        """Return the place of the unit that runs now and the seconds it has taken; answers while `run` runs."""
        place, began = self._worker.busy_since or (0, time.monotonic())
        return place, time.monotonic() - began

    def _content(self, name: str, payload: "Payload") -> "RecordDict":
        if name not in self._contents:
            data = payload if isinstance(payload, bytes) else ray.get(payload[0])
            while len(self._contents) >= CONTENTS_KEPT:
                del self._contents[next(iter(self._contents))]
            self._contents[name] = pickle.loads(data)
        return self._contents[name]
