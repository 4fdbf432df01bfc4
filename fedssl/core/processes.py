"""How a process gets ready: its surroundings, quick imports, and work in the background."""

import gc
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

Made = TypeVar("Made")

DISCREET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_ERROR_REPORTING": "false",
}
"""Environment variables by which libraries report nothing of their use to their makers."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that no proxy may stand in front of."""


def prepare_process() -> None:
    """Make a process that is all ours ready: its surroundings, and streams that no character can break.

    A character that a terminal cannot show is written as ``?``.
    """
    prepare_surroundings()
    # Pictures are files here, whatever a notebook or a shell has chosen.
    os.environ["MPLBACKEND"] = "agg"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def prepare_surroundings() -> None:
    """Set environment variables that libraries read when they are imported, and child processes inherit.

    Libraries report nothing of their use, unless the user has set their variable; and proxies stay out of what this machine
    says to itself.
    """
    for name, value in DISCREET.items():
        os.environ.setdefault(name, value)
    os.environ.update(without_proxy(os.environ))


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep proxies out of what this machine says to itself; empty without any proxy.

    Args:
        environment: Variables as they are; the hosts that they except already stay excepted.
    """
    names = {name.lower() for name in environment}
    if not names & {"http_proxy", "https_proxy", "all_proxy", "grpc_proxy"}:
        return {}
    said = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = [host.strip() for host in said.split(",") if host.strip()]
    excepted = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
    return {"no_proxy": excepted, "NO_PROXY": excepted}


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import in here what stays for the life of the process.

    The two hundred thousand objects that torch and Flower make on import are no garbage, yet Python would look through
    them over and over while they are made, again every so often later, and once more when the process ends: a third
    of what `import torch` takes. Here nobody looks, and afterwards they count as permanent.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_path() -> str:
    """Return the PYTHONPATH with which another process finds the modules that this one does, the user's own last."""
    return os.pathsep.join(_installed_first(sys.path))


@contextmanager
def installed_modules_first() -> Iterator[None]:
    """Import in here as if the folder of the user's script were the last place to look for modules.

    A file ``torch.py`` beside a script is then not taken for the library.
    """
    before = list(sys.path)
    sys.path[:] = _installed_first(before)
    ours = list(sys.path)
    try:
        yield
    finally:
        if sys.path == ours:  # what was imported may have added folders of its own
            sys.path[:] = before


def _installed_first(path: list[str]) -> list[str]:
    """Return a module search path whose folders of the user's own, the current one and the script's, come last."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    own = {Path.cwd(), *([Path(script).absolute().parent] if script else [])}
    own.discard(Path(__file__).absolute().parents[2])  # a checkout of ours
    entries = list(dict.fromkeys(str(Path(entry).absolute()) for entry in path))
    return sorted(entries, key=lambda entry: Path(entry) in own)


class InBackground(Generic[Made]):
    """Make something in a thread of its own, which lives as long as what it made is used.

    Processes that are bound to the life of their parent are bound to the thread that started them (Linux).

    Args:
        make: Called at once, in the thread.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._made: Future[Made] = Future()
        self._over = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def result(self) -> Made:
        """Return what was made, once it is; raise what it raised."""
        return self._made.result()

    def end(self, close: Callable[[Made], None]) -> None:
        """Close what was made, once it is; what could not be made needs no closing."""
        try:
            if self._made.exception() is None:
                close(self._made.result())
        finally:
            self._over.set()

    def _run(self) -> None:
        try:
            self._made.set_result(self._make())
        except BaseException as error:  # theirs who ask for the result
            self._made.set_exception(error)
        self._over.wait()
