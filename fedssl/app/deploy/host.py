"""Run a deployment's processes on this host, without containers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fedssl.app.deploy.deployment import Deployment
from fedssl.app.deploy.health import is_service_well
from fedssl.app.deploy.keeper import PATIENCE, read_report
from fedssl.app.deploy.ports import is_free
from fedssl.app.deploy.services import (
    Service,
    client_service,
    environment_for_flower,
    place_on_this_host,
    server_services,
    with_this_package,
)
from fedssl.core.errors import InputError, RunFailed

START_TIMEOUT = 90.0
"""A process must be up within this many seconds."""


@dataclass(frozen=True)
class State:
    """The state of a process.

    Args:
        name: The service's name.
        runs: Whether a keeper keeps the process running.
        healthy: Whether the service answers health checks; None: it has no health check.
        starts: How often the process was started.
    """

    name: str
    runs: bool
    healthy: bool | None
    starts: int


class Host:
    """Start, watch and end the processes of a deployment.

    Args:
        deployment: The deployment.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        place = place_on_this_host(deployment)
        settings = deployment.settings
        self.server = list(server_services(place, settings.bind))
        self.clients = [
            client_service(
                place.python,
                number,
                place.gate,
                place.authority,
                deployment.key(number).absolute(),
                settings.client_port + number,
                deployment.client(number),
                Path(settings.data[number]) if number in settings.data else None,
                settings.node_config,
            )
            for number in range(settings.clients)
        ]

    def refuse_taken_ports(self, services: Iterable[Service]) -> None:
        """Raise `InputError` if another process has the port of a service that does not run."""
        for service in services:
            if read_report(self._file(service.name)) is None and _is_taken(service):
                raise InputError(
                    "deployment.toml",
                    f"port {_port(service)} of {service.name} is taken by another process",
                    f"end that process, or set another `{_port_setting(service)}` in deployment.toml",
                )

    def start(self, services: Sequence[Service]) -> None:
        """Start the services that do not run, and wait until all are up.

        Raises:
            InputError: Another process has a service's port.
            RunFailed: A service does not come up. The error says where its log is.
        """
        self.refuse_taken_ports(services)
        for service in services:
            if read_report(self._file(service.name)) is None:
                self._spawn(service)
        for service in services:
            self._wait_for(service)

    def states(self) -> list[State]:
        """Return the state of every process."""
        found = []
        for service in (*self.server, *self.clients):
            said = read_report(self._file(service.name))
            healthy = None if service.health is None else self._answers(service.health)
            starts = 0 if said is None else said["starts"]
            found.append(State(service.name, said is not None, healthy, starts))
        return found

    def stop(self) -> None:
        """End all processes; the clients end first, because they sign off at the server."""
        self._end(self.clients)
        self._end(self.server[::-1])
        for service in (*self.clients, *self.server):
            self._refuse_remains(service)

    def restart(self, services: Sequence[Service]) -> None:
        """End services and start them again."""
        self._end(services)
        self.start(services)

    def _end(self, services: Iterable[Service]) -> None:
        names = [service.name for service in services]
        told: set[int] = set()
        deadline = time.monotonic() + PATIENCE + 10
        while there := {name: said for name in names if (said := read_report(self._file(name)))}:
            # A keeper that has just begun has not written its process number yet; it is told once it has.
            for said in there.values():
                if said["keeper"] and said["keeper"] not in told:
                    os.kill(said["keeper"], signal.SIGTERM)
                    told.add(said["keeper"])
            if time.monotonic() > deadline:
                raise RunFailed(f"still running: {', '.join(there)}")
            time.sleep(0.1)

    def _refuse_remains(self, service: Service) -> None:
        """Remove the file that a killed keeper left behind.

        Raises:
            RunFailed: The keeper's process still has its port.
        """
        file = self._file(service.name)
        if not file.exists():
            return
        deadline = time.monotonic() + PATIENCE  # the process was told to end when its keeper died
        while _is_taken(service) and time.monotonic() < deadline:
            time.sleep(0.2)
        if _is_taken(service):
            raise RunFailed(
                f"the keeper of {service.name} was killed, and a process still has its port {_port(service)}; "
                f"find that process with `ss -ltnp`, and end it"
            )
        file.unlink()

    def log(self, name: str) -> Path:
        """Return the file to which a service's output goes."""
        return self._deployment.logs / f"{name}.log"

    def _spawn(self, service: Service) -> None:
        file = self._file(service.name)
        variables = {**with_this_package(environment_for_flower()), "PYTHONUNBUFFERED": "1"}
        with self.log(service.name).open("ab") as log:
            subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "fedssl.app.deploy.keeper",
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
        while read_report(self._file(service.name)) is None or not (
            service.health is None or self._answers(service.health)
        ):
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"{service.name} is not up after {START_TIMEOUT:g} s; its log: {self.log(service.name)}"
                )
            time.sleep(0.2)

    def _file(self, name: str) -> Path:
        return self._deployment.processes / f"{name}.json"

    def _answers(self, url: str) -> bool:
        return is_service_well(url, str(self._deployment.certificates / "ca.crt"))


def _port(service: Service) -> int | None:
    return None if service.health is None else urlsplit(service.health).port


def _port_setting(service: Service) -> str:
    """Return the setting of ``deployment.toml`` that says a service's port."""
    return {"gate": "port", "superlink": "superlink_port"}.get(service.name, "client_port")


def _is_taken(service: Service) -> bool:
    """Return whether a process listens at a service's port."""
    port = _port(service)
    return port is not None and not is_free(port)
