"""The processes of a deployment and their commands, the same on a host and in containers."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from fedssl.app.deploy.deployment import Deployment
from fedssl.core.processes import DISCREET, without_proxy

NO_INSTALLATION = {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}

ENVIRONMENT = {**DISCREET, **NO_INSTALLATION}
"""These environment variables keep Flower's processes from calling home and from installing anything."""


def environment_for_flower() -> dict[str, str]:
    """Return this process's environment, with a PATH that finds Flower's commands; they start one another by name."""
    beside_python = str(Path(sys.executable).parent)
    path = os.pathsep.join([beside_python, os.environ.get("PATH", os.defpath)])
    return {
        **DISCREET,
        **os.environ,
        **without_proxy(os.environ),
        **NO_INSTALLATION,
        "PATH": path,
    }


def with_this_package(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python finds this fedssl; services do not search the current folder (-P)."""
    here = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, [here, variables.get("PYTHONPATH")]))
    return {**variables, "PYTHONPATH": path}


LOST = 75
"""A SuperNode exits with this code if its loop ended without an order and without a user's error (EX_TEMPFAIL)."""

REFUSED = 77
"""A SuperNode exits with this code if its server refuses its key (EX_NOPERM)."""

WRONG_NUMBER = 78
"""A SuperNode exits with this code if its client may not have its number (EX_CONFIG)."""


@dataclass(frozen=True)
class Place:
    """The place where services run: the paths of their files and the addresses of each other.

    Args:
        python: The Python interpreter.
        authority, certificate, key: Files of the server's certificate authority, certificate and key.
        admitted: Folder of the public keys of registered clients.
        executor_secret: File of the secret by which the SuperLink recognizes the process that runs apps.
        database: File of the SuperLink's database, in a folder that outlives the process.
        superlink, gate: Addresses for those that connect, as HOST:PORT.
        listen: Address at which the SuperLink listens.
    """

    python: str
    authority: PurePath
    certificate: PurePath
    key: PurePath
    admitted: PurePath
    executor_secret: PurePath
    database: PurePath
    superlink: str
    gate: str
    listen: str


@dataclass(frozen=True)
class Service:
    """A process of a deployment.

    Args:
        name: ``superlink``, ``executor``, ``gate`` or ``client-N``.
        command: The command that the process runs.
        health: URL that answers 200 once the service is up; None: the service has no health check.
    """

    name: str
    command: tuple[str, ...]
    health: str | None = None


def place_on_this_host(deployment: Deployment) -> Place:
    """Return the place of a deployment without containers."""
    folder, settings = deployment.folder.absolute(), deployment.settings
    return Place(
        python=sys.executable,
        authority=folder / "certificates" / "ca.crt",
        certificate=folder / "certificates" / "server.crt",
        key=folder / "certificates" / "server.key",
        admitted=deployment.admitted.absolute(),
        executor_secret=folder / "executor.secret",
        database=folder / "superlink" / "state.db",
        superlink=f"127.0.0.1:{settings.superlink_port}",
        gate=f"127.0.0.1:{settings.port}",
        listen="127.0.0.1",
    )


def server_services(place: Place, listen_gate: str) -> Iterator[Service]:
    """Yield the server's processes in the order in which they start.

    Args:
        place: The place where they run.
        listen_gate: Address at which the gate listens.
    """
    port, gate_port = place.superlink.rpartition(":")[2], place.gate.rpartition(":")[2]
    secret = ("--superexec-auth-secret-file", str(place.executor_secret))
    certificates = (
        *("--ssl-certfile", str(place.certificate), "--ssl-keyfile", str(place.key)),
        *("--ssl-ca-certfile", str(place.authority)),
    )
    yield Service(
        "superlink",
        (
            *("flower-superlink", "--host", place.listen, "--port", port),
            *certificates,
            *("--isolation", "process", "--database", str(place.database)),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *secret,
        ),
        f"https://{place.superlink}/health",
    )
    yield Service(
        "executor",
        (
            *("flower-superexec", "--runtime-api-address", place.superlink),
            *("--root-certificates", str(place.authority)),
            *secret,
        ),
    )
    yield Service(
        "gate",
        (
            *(place.python, "-P", "-m", "fedssl.app.deploy.gate", "--to", place.superlink),
            *("--host", listen_gate, "--port", gate_port, "--ca", str(place.authority)),
            *("--certificate", str(place.certificate), "--key", str(place.key)),
            *("--admitted", str(place.admitted)),
        ),
        f"https://{place.gate}/health",
    )


def client_service(
    python: str,
    number: int,
    server: str,
    authority: PurePath,
    key: PurePath,
    port: int,
    folder: PurePath,
    data: PurePath | None,
    further: Mapping[str, str | float] | None = None,
) -> Service:
    """Return a client's process.

    Args:
        python: The Python interpreter.
        number: The client's number.
        server: The gate's address, as HOST:PORT.
        authority: The deployment's ``ca.crt``.
        key: The client's private key.
        port: The client's own port, on the loopback.
        folder: The client's own folder, for its state and the log of what it sent.
        data: The client's own images; None: its share of the experiment's data set.
        further: Further settings of its node's config, such as the client's own limits of privacy.
    """
    config = f'partition-id={number} folder="{folder}"'
    if data is not None:
        config += f' data-path="{data}"'
    for name, value in (further or {}).items():
        config += f' {name}="{value}"' if isinstance(value, str) else f" {name}={value!r}"
    return Service(
        f"client-{number}",
        (
            *(python, "-P", "-m", "fedssl.app.deploy.supernode", "--superlink", server),
            *("--root-certificates", str(authority)),
            *("--auth-supernode-private-key", str(key), "--port", str(port)),
            *("--node-config", config),
        ),
        f"http://127.0.0.1:{port}/health",
    )
