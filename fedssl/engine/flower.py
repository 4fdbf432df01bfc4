"""Run the same apps under Flower's own simulation runtime."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedssl.core.errors import RunFailed
from fedssl.core.processes import prepare_surroundings
from fedssl.core.trust import EVERY_MODULE
from fedssl.data.cache import cache_folder
from fedssl.engine.grid_view import GridView
from fedssl.engine.plan import WorkerPlan
from fedssl.engine.ray.actor import devices_here
from fedssl.engine.ray.start import RayCluster
from fedssl.engine.ray.witness import Record
from fedssl.exchange.protocol import ALLOWED_PLUGINS, DEVICE

HOME_VARIABLE = "FLWR_HOME"
"""This environment variable names the folder of Flower's files."""

POLL_SECONDS = 0.1
"""The grid looks for replies again after this many seconds, as Flower's own grid does."""


def simulate(
    serve: Callable[[Grid], None],
    app: ClientApp,
    num_clients: int,
    plan: WorkerPlan,
    record: Record | None = None,
) -> None:
    """Run a federation under Flower's simulation runtime.

    Args:
        serve: The body of the ServerApp; it gets the ServerApp's grid.
        app: The client app.
        num_clients: K, the number of clients in all.
        plan: The number of actors, and the cores and GPUs of each.
        record: Where the run is recorded; None: nowhere.

    Raises:
        InputError: There is no folder for Ray's files.
        RunFailed: Ray does not start.
    """
    prepare_surroundings()
    _find_home()
    from flwr.simulation import run_simulation  # imported here: it reads the environment

    over = threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(_Watched(grid, over))

    cpus = int(plan.cpus) if plan.cpus >= 1 else plan.cpus
    # Flower's runtime uses the Ray that it finds in this process. A Ray that it starts itself would admit everybody.
    cluster = RayCluster(None, num_cpus=max(1, round(plan.workers * cpus)))
    try:
        with cluster.witness.recording(record), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            run_simulation(
                server_app=server_app,
                client_app=_as_a_worker(app, plan.cpus_per_client),
                num_supernodes=num_clients,
                backend_config={"client_resources": {"num_cpus": cpus, "num_gpus": plan.gpus}},
            )
    finally:
        over.set()
        cluster.close()


def _find_home() -> None:
    """Set ``FLWR_HOME`` to a folder beside the cache if Flower's own choice, the home folder, cannot be written to."""
    if os.environ.get(HOME_VARIABLE):
        return
    try:
        home = Path.home()
    except RuntimeError:  # neither $HOME nor an entry in the list of users
        home = None
    if home is None or not home.is_absolute() or not os.access(home, os.W_OK):
        os.environ[HOME_VARIABLE] = str(cache_folder() / "flower")


def _as_a_worker(app: ClientApp, cpus_per_client: int) -> ClientApp:
    """Return an app that is told what a worker of ours is told: its devices, and that it may import every module.

    The experiment is this machine's own.
    """

    def run(message: Message, context: Context) -> Message:
        context.node_config[ALLOWED_PLUGINS] = EVERY_MODULE
        context.node_config[DEVICE] = devices_here(cpus_per_client)
        return app(message, context)

    return cast("ClientApp", run)


class _Watched(GridView):
    """Flower's grid, but it stops waiting for replies once the runtime behind it has ended.

    Args:
        inner: Flower's grid.
        over: An event that is set when the runtime ends.
    """

    def __init__(self, inner: Grid, over: threading.Event) -> None:
        super().__init__(inner)
        self._over = over

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies that came in time.

        Raises:
            RunFailed: The runtime has ended, so no more replies can come.
        """
        missing = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while missing and (deadline is None or time.monotonic() < deadline):
            found = list(self.pull_messages(missing))
            replies += found
            missing -= {reply.metadata.reply_to_message_id for reply in found}
            if missing and self._over.wait(POLL_SECONDS):
                raise RunFailed("Flower's simulation runtime ended before all clients had replied")
        return replies
