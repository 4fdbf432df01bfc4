"""A deployment as services of Docker Compose: one image, secrets as files, and only necessary folders writable."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from fedssl.app.deploy.deployment import (
    CONTAINERS_USER,
    GATE_PORT,
    SUPERLINK_PORT,
    Deployment,
    Settings,
)
from fedssl.app.deploy.services import ENVIRONMENT, Place, Service, client_service, server_services
from fedssl.core.errors import InputError, RunFailed

SECRETS = PurePosixPath("/run/secrets")
STATE, RUNS, DATA, ADMITTED = (
    PurePosixPath(path) for path in ("/state", "/runs", "/data", "/admitted")
)
OPERATOR = PurePosixPath("/deployment")

IN_CONTAINERS = Place(
    python="python",
    authority=SECRETS / "ca.crt",
    certificate=SECRETS / "server.crt",
    key=SECRETS / "server.key",
    admitted=ADMITTED,
    executor_secret=SECRETS / "executor.secret",
    database=STATE / "state.db",
    superlink=f"superlink:{SUPERLINK_PORT}",
    gate=f"gate:{GATE_PORT}",
    listen="0.0.0.0",
)

CLIENT = PurePosixPath("/client")
"""Every client's own folder, inside its container."""

CLIENT_PORT = 9094
"""Every client's own port, inside its container."""


def compose_file(settings: Settings, base: str = ".") -> dict[str, Any]:
    """Return the services of a deployment as a Compose file.

    Args:
        settings: The deployment's settings.
        base: Path of the deployment's folder, as seen from the Compose file.
    """
    # The server's processes, and `run`, the container of the operator's commands.
    server = {s.name: s for s in server_services(IN_CONTAINERS, "0.0.0.0")}
    public = ["ca.crt", "server.crt"]
    shared = settings.server_data
    reference = [] if shared is None else [f"{shared}:{shared}:ro"]
    services: dict[str, Any] = {
        "superlink": {
            **_service_entry(
                server["superlink"], [*public, "server.key", "executor.secret"], ["inside"]
            ),
            "volumes": [f"{base}/superlink:{STATE}"],
        },
        "executor": {
            **_service_entry(server["executor"], ["ca.crt", "executor.secret"], ["inside"]),
            "working_dir": "/",
            "volumes": [f"{base}/runs:{RUNS}", *reference],
            "depends_on": _when_healthy("superlink"),
        },
        "gate": {
            **_service_entry(
                server["gate"], [*public, "server.key"], ["inside", "clients", "outside"]
            ),
            "volumes": [f"{base}/admitted:{ADMITTED}:ro"],
            "ports": [f"{settings.bind}:{settings.port}:{GATE_PORT}"],
            "depends_on": _when_healthy("superlink"),
        },
        "run": {
            **_common_entry(["inside"]),
            "profiles": ["operator"],
            "restart": "no",
            "command": ["flwr", "--help"],
            "volumes": [f"{base}:{OPERATOR}:ro"],
            "secrets": ["ca.crt"],
            "depends_on": _when_healthy("superlink"),
        },
    }
    # The clients. Each reads its own images, or the ones that the experiment names.
    for number in range(settings.clients):
        data = DATA / PurePosixPath(settings.data[number]).name if number in settings.data else None
        client = client_service(
            IN_CONTAINERS.python,
            number,
            IN_CONTAINERS.gate,
            IN_CONTAINERS.authority,
            SECRETS / f"client-{number}",
            CLIENT_PORT,
            CLIENT,
            data,
            settings.node_config,
        )
        services[client.name] = {
            **_service_entry(client, ["ca.crt", f"client-{number}"], ["clients"]),
            "depends_on": _when_healthy("gate"),
        }
        images = reference if data is None else [f"{settings.data[number]}:{data}:ro"]
        own = f"{base}/clients/client-{number}:{CLIENT}"
        services[client.name]["volumes"] = [own, *images]
    # The secrets are files of the deployment's folder. Of the networks, only `outside` (the gate's) has a way out.
    files = {name: f"{base}/certificates/{name}" for name in (*public, "server.key")}
    files["executor.secret"] = f"{base}/executor.secret"
    files |= {f"client-{n}": f"{base}/keys/client-{n}" for n in range(settings.clients)}
    return {
        "name": "fedssl",
        "services": services,
        "networks": {"inside": {"internal": True}, "clients": {"internal": True}, "outside": {}},
        "secrets": {name: {"file": path} for name, path in files.items()},
    }


def as_yaml(compose: Mapping[str, Any], remark: str) -> str:
    """Return a Compose file as YAML, with a remark as a comment at its top."""
    lines = "".join(f"# {line}\n" for line in remark.splitlines())
    text: str = yaml.safe_dump(dict(compose), sort_keys=False, width=120)
    return lines + text


class Containers:
    """Start, watch and end a deployment's containers.

    Args:
        deployment: The deployment.
        say: Prints a line.
    """

    def __init__(self, deployment: Deployment, say: Callable[[str], None]) -> None:
        self._file = deployment.folder / "docker-compose.yml"
        self._say = say
        self._environment = {**os.environ, **user_variables(deployment)}

    def compose(self, *arguments: str, quiet: bool = False) -> str:
        """Run a command of Compose; return its output.

        Raises:
            InputError: There is no Docker with Compose here, or Docker reaches no engine.
            RunFailed: The command failed.
        """
        command = self.command(*arguments)
        if not quiet:
            self._say(f"$ {' '.join(command)}")
        try:
            done = subprocess.run(
                command,
                text=True,
                capture_output=True,
                env=self._environment,
            )
        except FileNotFoundError:
            raise _engine_error("there is no command `docker` on this host") from None
        if done.returncode == 0:
            return done.stdout
        if any(words in done.stderr for words in _NO_COMPOSE):
            raise _engine_error("this `docker` has no Compose plugin (`docker compose`)")
        if "Cannot connect to the Docker daemon" in done.stderr:
            raise _engine_error(done.stderr.strip().splitlines()[-1])
        raise RunFailed(f"{' '.join(command)} failed:\n{done.stderr.strip()}")

    def check(self) -> None:
        """Raise `InputError` if this host cannot run containers."""
        self.compose("ps", "--quiet", quiet=True)

    def command(self, *arguments: str) -> list[str]:
        """Return a command of Compose for this deployment."""
        return ["docker", "compose", "--file", str(self._file), *arguments]

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables that Compose needs beside its file."""
        return self._environment

    def states(self) -> list[dict[str, Any]]:
        """Return Compose's entry for every container."""
        printed = self.compose("ps", "--all", "--format", "json", quiet=True)
        return [json.loads(line) for line in printed.splitlines() if line.strip()]


def user_variables(deployment: Deployment) -> dict[str, str]:
    """Return the variable that names the containers' user: the keys' owner, who can read them, but never root."""
    owner = deployment.file.stat()
    user, group = owner.st_uid or CONTAINERS_USER, owner.st_gid or CONTAINERS_USER
    return {"FEDSSL_USER": f"{user}:{group}"}


_NO_COMPOSE = (
    "not a docker command",
    "unknown flag: --file",
    "unknown shorthand flag",
    "unknown command: docker compose",
)
"""A `docker` without the Compose plugin answers `docker compose --file` with one of these texts, by its version."""


def _engine_error(problem: str) -> InputError:
    return InputError(
        "deploy",
        f"containers need Docker with Compose: {problem}",
        "start Docker, or run the same processes on this host: --no-containers",
    )


def _common_entry(networks: Sequence[str]) -> dict[str, Any]:
    """Return the settings of every service: no capabilities, no root, and no writable folder but one in memory."""
    return {
        "image": "${FEDSSL_IMAGE:-fedssl}",
        "user": f"${{FEDSSL_USER:-{CONTAINERS_USER}:{CONTAINERS_USER}}}",
        "environment": {**ENVIRONMENT, "HOME": "/tmp", "FLWR_HOME": "/tmp/flower"},
        "read_only": True,
        "tmpfs": ["/tmp:mode=1777"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "mem_limit": "${FEDSSL_MEMORY:-2g}",
        "pids_limit": 512,
        "restart": "unless-stopped",
        "init": True,
        "networks": list(networks),
    }


def _service_entry(
    service: Service, secrets: Sequence[str], networks: Sequence[str]
) -> dict[str, Any]:
    entry = {**_common_entry(networks), "command": list(service.command), "secrets": list(secrets)}
    if service.health is not None:
        entry["healthcheck"] = {
            "test": [
                "CMD",
                "python",
                "-m",
                "fedssl.app.deploy.health",
                service.health,
                str(IN_CONTAINERS.authority),
            ],
            "interval": "10s",
            "timeout": "10s",
            "retries": 6,
            "start_period": "60s",
            "start_interval": "1s",
        }
    return entry


def _when_healthy(name: str) -> dict[str, Any]:
    return {name: {"condition": "service_healthy"}}
