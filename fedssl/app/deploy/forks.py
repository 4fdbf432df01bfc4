"""Run the client app of a SuperNode for every message, each time in a fork of a process that has imported the app already.

Flower's own executor starts a new interpreter for every message (flwr 1.41). It imports torch and Flower anew, which takes several seconds
of a core, often more than the training. A fork shares the imported modules and nothing else: every message still has a process of its own,
which ends with the reply. Besides, the token of a message is in no command line, where other users of the host could read it.
"""

import os
import sys
from collections.abc import Callable

from flwr.supercore.exit.exit_handler import registered_exit_handlers
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import run_clientapp

# Every message needs this module. Its import starts no thread and asks for no GPU, so a process that has it can fork.
import fedssl.clients.client_app  # noqa: F401


class ForkingExecutor(SubprocessExecutor):
    """Start a fork of this process for every message.

    Args:
        run: Runs the app for one message, and raises `SystemExit` at its end.
    """

    def __init__(self, run: Callable[..., None] = run_clientapp) -> None:
        self._run = run

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start a process for a message. In the new process, this method ends with `SystemExit`."""
        if os.fork():
            return LaunchResult.accepted()
        registered_exit_handlers.clear()  # they close what belongs to the parent
        self._run(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            certificates=validate_and_resolve_root_certificates(
                spec.root_certificates_path, spec.insecure
            ),
            parent_pid=spec.parent_pid,
            runtime_dependency_install=spec.runtime_dependency_install,
        )
        sys.exit()

    def reconcile(self) -> None:
        """Let the system forget the processes that have ended. Flower calls this method before it looks for a message."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # there is no process
            pass


def serve(address: str, supernode: int) -> None:
    """Run the messages of a SuperNode until the SuperNode's process ends.

    Args:
        address: Address of the SuperNode's own API, as HOST:PORT.
        supernode: Number of the SuperNode's process.
    """
    superexec.get_executor = lambda *args, **settings: ForkingExecutor()  # type: ignore[attr-defined]
    superexec.run_superexec(address, insecure=True, parent_pid=supernode)
