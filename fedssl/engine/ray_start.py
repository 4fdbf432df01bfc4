"""How Ray is started on this machine and how its workers are: without what no run here needs.

Written for ray 2.55, the version that flwr 1.41 pins.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray._private.node as ray_node

from fedssl.engine.plan import WorkerPlan, available_cores
from fedssl.startup import quick_imports


class _LeanNode(ray_node.Node):  # type: ignore[misc]
    """A node of Ray's that starts no dashboard, autoscaler or log monitor.

    `ray.init` has no switch for them: "no dashboard" still starts its server, and waits for it. They would cost two
    seconds of a core at the start and a second at the end, to show what nobody looks at, to add machines where there
    are none, and to read logs aloud to a driver that does not listen.
    """

    def start_api_server(self, **settings: Any) -> None:
        self._webui_url = ""

    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass


def start_ray() -> None:
    """Start Ray for this process alone; its other processes end with the thread that called this, at the latest."""
    with _workers_environment(), _lean_nodes():
        ray.init(
            address="local",
            num_cpus=available_cores(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            # Else one idle process a core: on a large machine, many more than the actors that will be asked for.
            _system_config={"prestart_worker_first_driver": False},
        )


@contextmanager
def _lean_nodes() -> Iterator[None]:
    kept = ray_node.Node
    ray_node.Node = _LeanNode
    try:
        yield
    finally:
        ray_node.Node = kept


@contextmanager
def _workers_environment() -> Iterator[None]:
    """Set what Ray's workers inherit from the environment Ray is started in, and put it back.

    They need this process's import path (Ray's own way, a runtime environment, costs every worker a start of its own).
    That actors without a GPU still see the machine's is Ray's coming default: our workers name their device themselves.
    """
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    wanted = {"PYTHONPATH": path, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Actor:
    """What Ray makes an actor of: it makes the worker itself, so that what that imports is imported quickly."""

    def __init__(self, parts: list[Any]) -> None:
        with quick_imports():
            make_worker, app = ray.get(parts[0])
            self._worker = make_worker(app)

    def describe(self) -> Any:
        """Return what the worker says of itself."""
        return self._worker.describe()

    def run(self, chunk: Any) -> Any:
        """Return what the worker makes of a chunk."""
        return self._worker.run(chunk)


def spawn(parts: Any, plan: WorkerPlan) -> Any:
    """Start an actor and return its handle at once.

    Args:
        parts: Reference to a pair: the worker's class and the app that it is made with.
        plan: What the actor is given.
    """
    actor = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus)(_Actor)
    # Within a list: Ray would read a bare reference, and import all that it needs, before the actor is made.
    return actor.remote([parts])
