"""Open a deployment for a command: its settings, the way its processes run, and the operator that reaches its server."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from fedssl.app.deploy.containers import IN_CONTAINERS, OPERATOR, Containers
from fedssl.app.deploy.deployment import Deployment
from fedssl.app.deploy.keeper import is_kept
from fedssl.app.deploy.operator import Operator
from fedssl.app.deploy.options import deploy_command, say
from fedssl.app.deploy.secrets import days_left
from fedssl.app.deploy.services import place_on_this_host
from fedssl.core.errors import InputError

DAYS_OF_WARNING = 30
"""Every command warns if the certificate expires within this many days."""


@dataclass(frozen=True)
class Opened:
    """A deployment that a command works with.

    Args:
        folder: The deployment's folder as the command was given it.
        deployment: The deployment.
        has_containers: Whether its processes run in containers; otherwise they run on this host.
        operator: Runs Flower's commands against its server.
        at: Path under which the operator's commands see the deployment's folder.
    """

    folder: Path
    deployment: Deployment
    has_containers: bool
    operator: Operator
    at: PurePath

    def describe_logs(self) -> str:
        """Return where the logs of the processes are."""
        if self.has_containers:
            file = self.deployment.folder / "docker-compose.yml"
            return f"the processes' logs: docker compose --file {file} logs"
        return f"the processes' logs: {self.deployment.logs}"

    def command(self, command: str) -> str:
        """Return a command of `fedssl deploy` for this deployment, as its user would write it."""
        return _command(command, self.folder, self.deployment, self.has_containers)

    def is_served(self) -> bool:
        """Return whether something keeps the SuperLink running; it need not answer, as it may be starting again."""
        if not self.has_containers:
            return is_kept(self.deployment.processes / "superlink.json")
        states = Containers(self.deployment, say).states()
        kept = ("running", "restarting", "created")
        return any(s["Service"] == "superlink" and s.get("State") in kept for s in states)

    def flwr_log_command(self, run_id: str) -> str:
        """Return the command that shows the log of a run's server app."""
        if not self.has_containers:
            home = shlex.quote(str(self.deployment.connection.parent))
            return f"FLWR_HOME={home} flwr log {run_id} deployment --show"
        file = shlex.quote(f"{self.deployment.folder}/docker-compose.yml")
        ask = f"mkdir -p /tmp/flower && cp {OPERATOR}/flower/config.toml /tmp/flower && flwr log {run_id} deployment --show"
        return f"docker compose --file {file} run --rm --no-deps -T run sh -c {shlex.quote(ask)}"


def open_deployment(folder: Path, *, is_asked: bool = False) -> Deployment:
    """Open a deployment, and warn if its certificate expires soon.

    Args:
        folder: The deployment's folder.
        is_asked: An expired certificate is shown as a warning; otherwise it is an error.

    Raises:
        InputError: There is no deployment, or its certificate cannot be read or has expired.
    """
    deployment = Deployment.open(folder)
    certificate = deployment.certificates / "server.crt"
    try:
        left = days_left(certificate)
    except (OSError, ValueError) as error:
        raise InputError("--folder", f"{certificate} cannot be read: {error}") from None
    renew = "for a new certificate, make a new deployment: fedssl deploy init --folder ANOTHER"
    if left < 0 and not is_asked:
        raise InputError("--folder", f"{certificate} expired {-left:.0f} days ago", renew)
    if left < DAYS_OF_WARNING:
        when = f"expires in {left:.0f} days" if left >= 0 else f"expired {-left:.0f} days ago"
        say(f"{certificate} {when}; {renew}")
    return deployment


def open_with_operator(
    folder: Path, no_containers: bool | None, *, is_asked: bool = False
) -> Opened:
    """Open a deployment together with its operator.

    Args:
        folder: The deployment's folder.
        no_containers: Whether its processes run on this host; None: as the deployment remembers.
        is_asked: As in `open_deployment`.

    Raises:
        InputError: As in `open_deployment`; or this host cannot run containers, and the deployment needs them.
    """
    deployment = open_deployment(folder, is_asked=is_asked)
    home = deployment.connection.parent
    in_containers = has_containers(deployment, no_containers)
    remedy = f"start it: {_command('up', folder, deployment, in_containers)}"
    if not in_containers:
        place = place_on_this_host(deployment)
        deployment.write_connection(place.superlink, str(place.authority))
        operator = Operator(home, list, say, remedy)
        return Opened(folder, deployment, False, operator, deployment.folder)
    containers = Containers(deployment, say)
    containers.check()
    deployment.write_connection(IN_CONTAINERS.superlink, str(IN_CONTAINERS.authority))

    def inside(command: Sequence[str]) -> list[str]:
        copied = (
            f'mkdir -p /tmp/flower && cp {OPERATOR}/flower/config.toml /tmp/flower/ && exec "$@"'
        )
        return containers.command(
            "run", "--rm", "--no-deps", "-T", "run", "sh", "-c", copied, "sh", *command
        )

    operator = Operator(home, inside, say, remedy, containers.environment)
    return Opened(folder, deployment, True, operator, OPERATOR)


def _command(command: str, folder: Path, deployment: Deployment, in_containers: bool) -> str:
    """Return a command for a deployment; it says how the processes run if the deployment remembers another way."""
    differs = in_containers != deployment.settings.containers
    option = (" --containers" if in_containers else " --no-containers") if differs else ""
    return deploy_command(command, folder) + option


def has_containers(deployment: Deployment, no_containers: bool | None) -> bool:
    """Return whether a deployment's processes run in containers: as a command says, or as the deployment remembers."""
    return deployment.settings.containers if no_containers is None else not no_containers
