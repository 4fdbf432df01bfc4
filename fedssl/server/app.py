"""The Flower ServerApp, and `serve`, which runs an experiment over any grid and tells observers of it."""

import logging
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedssl.core.errors import FedsslError, InputError
from fedssl.engine.client_grid import ClientGrid
from fedssl.engine.persistent_grid import PersistentGrid
from fedssl.engine.remote_grid import as_client_grid
from fedssl.exchange.census import refuse_private, refuse_sites
from fedssl.experiment.experiment import Experiment
from fedssl.record.rows import AT_SERVER, Observer, Outcome
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import new_run_path
from fedssl.record.snapshot import Snapshot
from fedssl.server.bound_numbers import numbers_of
from fedssl.server.run import ServerRun

logger = logging.getLogger("fedssl.server")

app = ServerApp()

_one_at_a_time = threading.RLock()
"""A run uses what belongs to the whole process, such as the resident network and torch's default type of numbers."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run an experiment under Flower's own runtime or SuperLink.

    Flower's run config names the experiment: ``experiment`` is a file of the submitted app, or ``experiment-json`` is
    the experiment itself. ``run-directory`` is where the run is recorded; if it is empty, a new directory is made.
    ``nodes`` says which node is which client, where numbers are bound to keys. ``resume`` says whether to go on with the
    run in that directory.

    Raises:
        InputError: The experiment cannot be read, or its clients are sites of a simulation.
    """
    config = context.run_config
    text = str(config.get("experiment-json", ""))
    experiment = (
        Experiment.from_json(text)
        if text
        else Experiment.load(_submitted(str(config["experiment"])))
    )
    refuse_sites(experiment)
    path, resume = str(config.get("run-directory", "")), bool(config.get("resume", False))
    directory = RunDirectory(Path(path) if path else new_run_path(experiment), resume=resume)
    found = directory.load()
    for flaw in found.damaged:
        logger.warning("%s", flaw)
    numbers = numbers_of(str(config.get("nodes", "")))
    persistent = PersistentGrid(grid, numbers=numbers, on_wait=directory.waiting)
    serve(experiment, persistent, [directory], found.snapshot, numbers=numbers)


def _submitted(name: str) -> Path:
    """Return the path of a file of the app that Flower runs.

    Flower puts the app's folder in front of the import path (flwr 1.41), so the file is searched there.

    Raises:
        InputError: The app holds no such file.
    """
    found = next((Path(folder, name) for folder in sys.path if Path(folder, name).is_file()), None)
    if found is None:
        raise InputError(
            "experiment",
            f"is {name!r}, but the app holds no such file",
            "name a file below experiments/, as seen from the folder that `flwr run` is given",
        )
    return found


def serve(
    experiment: Experiment,
    grid: Grid,
    observers: Sequence[Observer],
    resume: Snapshot | None = None,
    *,
    numbers: Mapping[int, int] | None = None,
) -> Outcome:
    """Run an experiment over a grid. Threads of a process take turns: each run has the result that it has alone.

    Args:
        experiment: What to run.
        grid: The grid that reaches the experiment's clients.
        observers: They are told of everything as it happens.
        resume: The run goes on after this snapshot; None: it begins.
        numbers: Node id -> the client number that is bound to it, on a grid that does not simulate clients.

    Raises:
        InputError: The run cannot be resumed over this grid, or a simulation's clients should bring private data.
        RunFailed: Too few clients connected, answered the census, or succeeded in a round; observers are told first.
    """
    with _one_at_a_time:
        return _serve(experiment, as_client_grid(grid), observers, resume, numbers or {})


def _serve(
    experiment: Experiment,
    clients: ClientGrid,
    observers: Sequence[Observer],
    resume: Snapshot | None,
    numbers: Mapping[int, int],
) -> Outcome:
    """Run an experiment; arguments as in `serve`."""
    if clients.is_simulation:
        refuse_private(experiment)
    clients.states.discard()  # a run that was cut off may have left states
    run = ServerRun(experiment, clients, observers, numbers)
    try:
        return run.start(resume)
    except BaseException as error:
        reason = "\n".join([_reason(error, clients), *clients.incidents])
        is_interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        for observer in reversed(observers):  # the screen first: files can take a while
            try:
                (observer.interrupted if is_interrupted else observer.failed)(reason)
            except Exception as another:
                # An observer can fail too, such as on a full disk. Its error must not hide why the run stopped, and the
                # other observers must still be told.
                if str(another) != str(error):
                    error.add_note(f"{type(observer).__name__} could not record this: {another}")
        raise


def _reason(error: BaseException, grid: ClientGrid) -> str:
    """Return why a run stops; an error that is neither a user's mistake nor a failed run comes with its traceback."""
    if isinstance(error, SystemExit) and not grid.is_simulation:
        return "a signal ended the server app: the run was stopped, or the executor was ended"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "Ctrl-C or another signal"
    said = f"{type(error).__name__}: {error}"
    if not isinstance(error, Exception) or isinstance(error, FedsslError):
        return said
    return f"{said}{AT_SERVER}{''.join(traceback.format_exception(error))}".rstrip()
