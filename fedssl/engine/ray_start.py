"""How Ray is started on this machine: without what no run here needs.

Written for ray 2.55.1, the version that flwr 1.41 pins.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.node as ray_node
import ray._private.worker as ray_worker

from fedssl.engine.plan import available_cores
from fedssl.errors import InputError
from fedssl.startup import import_path

INLINE_BYTES = 1 << 20
"""What is smaller travels inside a call or its answer, which takes a third of the time of Ray's object store."""

PATIENCE = 30.0
"""Seconds in which Ray should have started."""


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

    def start_ray_processes(self) -> None:
        """Start them and wait until Ray knows of them, for which it would otherwise look once a second."""
        super().start_ray_processes()
        deadline = time.monotonic() + PATIENCE  # after which Ray says itself what is wrong
        while not self.get_gcs_client().get_all_node_info() and time.monotonic() < deadline:
            time.sleep(0.02)


def start_ray(address: str | None) -> None:
    """Start Ray for this process alone, or join one that runs.

    What is started ends with the thread that called this, at the latest.

    Raises:
        InputError: There is none at the address.
    """
    if address is None:
        with _workers_environment(), _lean_nodes(), _quiet():
            ray.init(
                address="local",
                num_cpus=available_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _system_config={
                    "max_direct_call_object_size": INLINE_BYTES,
                    # One idle process a core: on a large machine, many more than there will be actors.
                    "prestart_worker_first_driver": False,
                },
            )
        return
    environment = {"env_vars": {"PYTHONPATH": import_path()}}
    try:
        _knock(address)
        with _quiet():
            ray.init(
                address=address, log_to_driver=False, logging_level="error", runtime_env=environment
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            "engine.address",
            f"there is no Ray at {address!r}: {error}",
            "start one with `ray start --head`, or leave it unset",
        ) from None


def _knock(address: str) -> None:
    """Raise `OSError` if nobody listens at an address; Ray itself would try for minutes (2.55)."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()


@contextmanager
def _lean_nodes() -> Iterator[None]:
    kept = ray_node.Node
    ray_node.Node = _LeanNode
    try:
        yield
    finally:
        ray_node.Node = kept


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep a Ray that starts now from printing what its nodes say into our screen: lost workers are our incidents."""
    kept = ray_worker.listen_error_messages
    ray_worker.listen_error_messages = lambda worker, threads_stopped: None
    try:
        yield
    finally:
        ray_worker.listen_error_messages = kept


@contextmanager
def _workers_environment() -> Iterator[None]:
    """Set what Ray's workers inherit from the environment Ray is started in, and put it back.

    They need this process's import path (Ray's own way, a runtime environment, costs every worker a start of its own).
    That actors without a GPU still see the machine's is Ray's coming default: our workers name their device themselves.
    """
    wanted = {"PYTHONPATH": import_path(), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
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
