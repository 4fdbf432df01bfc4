"""Flower's own simulation runtime, for the same apps."""

import threading
import time
import warnings
from collections.abc import Callable, Iterable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedssl.engine.grid_view import GridView
from fedssl.engine.plan import WorkerPlan
from fedssl.errors import RunFailed
from fedssl.startup import prepare_surroundings

POLL_SECONDS = 0.1
"""Between looks for replies, as in Flower's own grid."""


def simulate(
    serve: Callable[[Grid], None], app: ClientApp, num_clients: int, plan: WorkerPlan
) -> None:
    """Run a federation under Flower's simulation runtime.

    Args:
        serve: What the ServerApp does with its grid.
        app: The client app.
        num_clients: K.
        plan: Actors, and the cores and GPUs of each.
    """
    prepare_surroundings()
    from flwr.simulation import run_simulation  # imported here: it reads the environment

    over = threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(_Watched(grid, over))

    cpus = 1 if plan.cpus >= 1 else plan.cpus
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            run_simulation(
                server_app=server_app,
                client_app=app,
                num_supernodes=num_clients,
                backend_config={
                    "client_resources": {"num_cpus": cpus, "num_gpus": plan.gpus},
                    "init_args": {
                        "address": "local",  # and not whatever Ray is running here, which may end or be full
                        "num_cpus": max(1, round(plan.workers * cpus)),
                        "log_to_driver": False,
                        "logging_level": "error",
                    },
                },
            )
    finally:
        over.set()


class _Watched(GridView):
    """Flower's grid, that does not wait for replies once the runtime behind it has ended.

    Args:
        inner: Flower's.
        over: Set when the runtime ends.
    """

    def __init__(self, inner: Grid, over: threading.Event) -> None:
        super().__init__(inner)
        self._over = over

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies that came in time.

        Raises:
            RunFailed: The runtime has ended, and nobody is left to reply.
        """
        missing = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while missing and (deadline is None or time.monotonic() < deadline):
            found = list(self.pull_messages(missing))
            replies += found
            missing -= {reply.metadata.reply_to_message_id for reply in found}
            if missing and self._over.wait(POLL_SECONDS):
                raise RunFailed("Flower's simulation runtime ended while clients were asked")
        return replies
