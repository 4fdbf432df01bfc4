"""Flower's own simulation runtime, for the same apps."""

import os
import warnings
from collections.abc import Callable

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedssl.engine.plan import WorkerPlan


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
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    from flwr.simulation import run_simulation  # imported here: it reads the environment

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid)

    cpus = 1 if plan.cpus >= 1 else plan.cpus
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        run_simulation(
            server_app=server_app,
            client_app=app,
            num_supernodes=num_clients,
            backend_config={
                "client_resources": {"num_cpus": cpus, "num_gpus": plan.gpus},
                "init_args": {
                    "num_cpus": max(1, round(plan.workers * cpus)),
                    "log_to_driver": False,
                    "logging_level": "error",
                },
            },
        )
