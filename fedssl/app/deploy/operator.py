"""Operate a SuperLink by Flower's own commands; most are printed before they run."""

import contextlib
import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedssl.app.deploy.deployment import NAME
from fedssl.app.deploy.services import environment_for_flower
from fedssl.core.errors import RunFailed

Say = Callable[[str], None]

COMPLETED = "finished:completed"


@dataclass(frozen=True)
class Operator:
    """Run Flower's commands against one SuperLink.

    Args:
        flower_home: Folder of the file that says where the SuperLink is.
        wrap: Turns a command into one that reaches the SuperLink, such as a command in a container.
        say: Prints a line.
        remedy: What to do if the SuperLink does not answer.
        variables: Environment variables that the wrapped command needs.
    """

    flower_home: Path
    wrap: Callable[[Sequence[str]], list[str]]
    say: Say
    remedy: str = "start it: fedssl deploy up"
    variables: Mapping[str, str] = field(default_factory=dict)

    def register(self, public_key: str, name: str) -> str | None:
        """Register a client's key; return the id of the client's node, or None if the key is registered already.

        Raises:
            RunFailed: The SuperLink refuses the key for another reason.
        """
        try:
            answer = self._ask("supernode", "register", public_key, NAME, "--name", name)
        except RunFailed as error:
            if "already" in str(error):
                return None
            raise
        return str(answer["node-id"])

    def unregister(self, node: str) -> None:
        """Let a client out: from now on the SuperLink refuses its key.

        Args:
            node: Flower's id of the client's node.
        """
        self._ask("supernode", "unregister", node, NAME)

    def nodes(self) -> list[Mapping[str, Any]]:
        """Return the clients that the SuperLink knows."""
        found: list[Mapping[str, Any]] = self._ask("supernode", "list", NAME, quiet=True)["nodes"]
        return found

    def start_run(self, app: str, settings: str) -> str:
        """Submit a run; return its id.

        Args:
            app: Folder of the app.
            settings: TOML file of the run config.
        """
        return str(self._ask("run", app, NAME, "--run-config", settings)["run-id"])

    def run_status(self, run_id: str) -> tuple[str, str]:
        """Return a run's status and its details."""
        (found,) = self._ask("ls", NAME, "--run-id", run_id, quiet=True)["runs"]
        return str(found["status"]), str(found.get("status-details") or "")

    def runs(self) -> list[Mapping[str, Any]]:
        """Return the runs that the SuperLink knows."""
        found: list[Mapping[str, Any]] = self._ask("ls", NAME, quiet=True)["runs"]
        return found

    def stop_run(self, run_id: str) -> None:
        """End a run."""
        self._ask("stop", run_id, NAME)

    def _ask(self, *arguments: str, quiet: bool = False) -> dict[str, Any]:
        """Run one of Flower's commands and return its JSON answer.

        Raises:
            RunFailed: The command failed. The error says why.
        """
        command = self.wrap(["flwr", *arguments, "--format", "json"])
        if not quiet:
            with contextlib.suppress(OSError):  # a run can be stopped after its terminal was closed
                self.say(f"$ {shlex.join(command)}")
        variables = {
            **environment_for_flower(),
            **self.variables,
            "FLWR_HOME": str(self.flower_home.absolute()),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=variables)
        said = (done.stdout + done.stderr).strip() or f"exit {done.returncode}"
        try:
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if not answer.get("success"):
            problem = str(answer.get("error-message") or said).strip()
            if "Connection to the SuperLink is unavailable" in problem:
                raise RunFailed(f"the deployment's server does not answer; {self.remedy}")
            raise RunFailed(f"`flwr {shlex.join(arguments[:2])}` failed: {problem}")
        return answer
