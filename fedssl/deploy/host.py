"""A deployment's processes on this host, without containers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import fedssl
from fedssl.deploy.deployment import Deployment
from fedssl.deploy.health import answers
from fedssl.deploy.keeper import PATIENCE
from fedssl.deploy.services import (
    Service,
    client_service,
    environment,
    on_this_host,
    server_services,
)
from fedssl.errors import InputError, RunFailed

START_TIMEOUT = 90.0
"""Seconds in which a process must be up."""


@dataclass(frozen=True)
class State:
    """How a process is.

    Args:
        name: The service's.
        runs: Whether somebody keeps it.
        healthy: Whether it answers; None: it is not one that is asked.
        starts: How often it was started.
    """

    name: str
    runs: bool
    healthy: bool | None
    starts: int


class Host:
    """Start, watch and end the processes of a deployment.

    Args:
        deployment: Whose.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        place = on_this_host(deployment)
        settings = deployment.settings
        self.server = list(server_services(place, settings.bind))
        self.clients = [
            client_service(
                number,
                place.gate,
                place.authority,
                deployment.key(number).absolute(),
                settings.client_port + number,
                Path(settings.data[number]) if number in settings.data else None,
                settings.allowed_plugins,
            )
            for number in range(settings.clients)
        ]

    def start(self, services: Iterable[Service]) -> None:
        """Start services that do not run, and wait until they are up.

        Raises:
            InputError: A port is taken by somebody else.
            RunFailed: One does not come up; says where its log is.
        """
        for service in services:
            if self._kept(service.name) is None:
                self._refuse_taken_port(service)
                self._spawn(service)
        for service in services:
            self._wait_for(service)

    def states(self) -> list[State]:
        """Return how every process is."""
        found = []
        for service in (*self.server, *self.clients):
            kept = self._kept(service.name)
            healthy = None if service.health is None else self._answers(service.health)
            starts = 0 if kept is None else kept["starts"]
            found.append(State(service.name, kept is not None, healthy, starts))
        return found

    def stop(self) -> None:
        """End all processes: clients first, for they take their leave of the server."""
        self._end(self.clients)
        self._end(self.server[::-1])

    def _end(self, services: Iterable[Service]) -> None:
        names = [service.name for service in services]
        for name in names:
            kept = self._kept(name)
            if kept is not None:
                os.kill(kept["keeper"], signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE + 10
        while still := [name for name in names if self._kept(name) is not None]:
            if time.monotonic() > deadline:
                raise RunFailed(f"still running: {', '.join(still)}")
            time.sleep(0.1)

    def log(self, name: str) -> Path:
        """Return where a service's output goes."""
        return self._deployment.logs / f"{name}.log"

    def _spawn(self, service: Service) -> None:
        file = self._deployment.processes / f"{service.name}.json"
        variables = {**environment(), "PYTHONUNBUFFERED": "1"}
        here = str(Path(fedssl.__file__).parent.parent)
        variables["PYTHONPATH"] = os.pathsep.join(
            filter(None, [here, os.environ.get("PYTHONPATH")])
        )
        with self.log(service.name).open("ab") as log:
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "fedssl.deploy.keeper",
                    str(file.absolute()),
                    *service.command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._deployment.folder,
                env=variables,
                start_new_session=True,
            )

    def _wait_for(self, service: Service) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while self._kept(service.name) is None or not (
            service.health is None or self._answers(service.health)
        ):
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"{service.name} is not up after {START_TIMEOUT:g} s; its log: {self.log(service.name)}"
                )
            time.sleep(0.2)

    def _refuse_taken_port(self, service: Service) -> None:
        if service.health is None:
            return
        port = int(service.health.split(":")[2].partition("/")[0])
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise InputError(
                    "deployment.toml",
                    f"port {port} of {service.name} is taken by another process",
                    "set another one there",
                ) from None

    def _kept(self, name: str) -> dict[str, int] | None:
        """Return what a keeper says of a service; None if nobody keeps it."""
        try:
            kept: dict[str, int] = json.loads(
                (self._deployment.processes / f"{name}.json").read_text()
            )
            os.kill(kept["keeper"], 0)
        except (OSError, ValueError):
            return None
        return kept

    def _answers(self, url: str) -> bool:
        return answers(url, str(self._deployment.certificates / "ca.crt"))
