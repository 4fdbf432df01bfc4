"""The class that Ray runs as an actor.

This module imports next to nothing, so that the actor itself can import the rest inside `quick_imports`.
"""

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
"""This environment variable holds the token that Ray's processes show each other."""

CONTENTS_KEPT = 2
"""A worker keeps this many contents for its next call, which often belongs to the same round."""


def devices_here(cpus_per_client: int) -> str:
    """Return the device of this actor, which Ray started, or the devices of its clients' team with commas between them."""
    import torch

    from fedssl.engine.plan import devices_of_worker

    return devices_of_worker(len(ray.get_gpu_ids()), cpus_per_client, torch.cuda.is_available())


class Actor:
    """Hold the client app, and through it the resident model, for the whole life of a process.

    Args:
        apps: A list of one reference to the client apps. Ray does not resolve a reference inside a list, so the actor
            can do so within `quick_imports`.
        cpus_per_client: Processes that train a client together on cores.
    """

    def __init__(self, apps: list[Any], cpus_per_client: int = 1) -> None:
        with quick_imports():
            from fedssl.engine.worker import Worker

            found: Apps = ray.get(apps[0])
        os.environ.pop(TOKEN, None)  # Ray has read the token; processes of a client must not see it
        devices = devices_here(cpus_per_client)
        self._device = devices.split(",")[0]
        self._worker = Worker(found.one, devices, found.together)
        self._contents: dict[str, RecordDict] = {}

    def describe(self) -> dict[str, Any]:
        """Return the device, GPU ids, process id and node of this worker; the answer comes once the worker is ready."""
        node = ray.get_runtime_context().get_node_id()
        gpus = ray.get_gpu_ids()
        return {"device": self._device, "gpu_ids": gpus, "pid": os.getpid(), "node": node}

    def run(self, order: "Order") -> "Done":
        """Run the clients of an order one after the other."""
        contents = {key: self._content(*found) for key, found in order.contents.items()}
        return self._worker.run(order.units, contents, order.rules)

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call a function with this worker's device and some further arguments."""
        self._worker.busy_since = (0, time.monotonic())
        try:
            return function(self._device, *arguments)
        finally:
            self._worker.busy_since = None

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def progress(self) -> tuple[int, float]:
        """Return the place of the running unit and its seconds so far; this method answers while `run` runs."""
        place, began = self._worker.busy_since or (0, time.monotonic())
        return place, time.monotonic() - began

    def _content(self, name: str, payload: "Payload") -> "RecordDict":
        if name not in self._contents:
            data = payload if isinstance(payload, bytes) else ray.get(payload[0])
            while len(self._contents) >= CONTENTS_KEPT:
                del self._contents[next(iter(self._contents))]
            self._contents[name] = pickle.loads(data)
        return self._contents[name]
