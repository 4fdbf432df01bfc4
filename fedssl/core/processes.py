"""Make a process ready: its environment variables, quick imports, and work in the background."""

import codecs
import ctypes
import gc
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from fedssl.core.text import encodable

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
"""With these environment variables, libraries report nothing about their use to their makers."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The numbers of options of glibc's mallopt(3)."""

LARGEST_KEPT = 32 * 2**20
"""glibc can keep freed blocks of up to this many bytes; it returns larger ones to the system at once."""

MOST_KEPT = 2**30
"""glibc keeps this many bytes of freed memory at the end of its heap."""

ENCODABLE = "fedssl.encodable"
"""Name under which output streams find `_replace_unencodable`."""

PR_SET_PDEATHSIG = 1
"""The number of the option PR_SET_PDEATHSIG of Linux's prctl(2)."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine. Connections to them never go through a proxy."""


def keep_freed_memory() -> None:
    """Let the C library keep the memory that a training step frees, for the next step; with other libraries than glibc, do nothing.

    By default, glibc returns most of it to the system, and the next step asks for it again. The system clears the pages each time. With
    batches of 28x28 images, that was a fifth of the whole time.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
            mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def signal_when_parent_ends(number: int) -> None:
    """Have this process sent a signal as soon as the thread that started it ends; on other systems than Linux, do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def prepare_process() -> None:
    """Make a process that runs only fedssl ready: its environment variables and its output streams.

    A character that a terminal cannot show is written as `fedssl.core.text.encodable` says, and raises no error.
    """
    prepare_surroundings()
    # fedssl draws figures into files only, whatever backend a notebook or a shell has chosen.
    os.environ["MPLBACKEND"] = "agg"
    codecs.register_error(ENCODABLE, _replace_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ENCODABLE)


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for the characters that a stream cannot write, and where it goes on (see `codecs.register_error`)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return encodable(error.object[error.start : error.end], error.encoding), error.end


def prepare_surroundings() -> None:
    """Set environment variables that libraries read on their import and that child processes inherit.

    They keep libraries from reporting their use, unless the user has set a library's variable. They also keep proxies
    out of this machine's connections to itself.
    """
    for name, value in DISCREET.items():
        os.environ.setdefault(name, value)
    os.environ.update(without_proxy(os.environ))


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep proxies out of this machine's connections to itself; empty if no proxy is set.

    Args:
        environment: The variables now. Hosts that they already exempt from proxies stay exempt.
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
    """Import modules faster inside the block; they must stay for the life of the process.

    torch and Flower make two hundred thousand objects on import. None of them is garbage, but Python's garbage
    collector would search them again and again during the import, from time to time later, and once more at the end of
    the process. This search takes a third of the time of `import torch`. The block turns the collector off, and the
    objects count as permanent afterwards.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def path_for_other_processes() -> str:
    """Return the PYTHONPATH with which another process finds this one's modules; the user's own folders come last."""
    return os.pathsep.join(_installed_first(sys.path))


@contextmanager
def installed_modules_first() -> Iterator[None]:
    """Search the folder of the user's script last for modules that are imported inside the block.

    Python then does not take a file ``torch.py`` beside the script for the library.
    """
    before = list(sys.path)
    sys.path[:] = _installed_first(before)
    ours = list(sys.path)
    try:
        yield
    finally:
        if sys.path == ours:  # an imported module may have added folders of its own
            sys.path[:] = before


def _installed_first(path: list[str]) -> list[str]:
    """Return a module search path in which the user's own folders (the current and the script's) come last."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    own = {Path.cwd(), *([Path(script).absolute().parent] if script else [])}
    own.discard(Path(__file__).absolute().parents[2])  # a checkout of fedssl is not the user's
    entries = list(dict.fromkeys(str(Path(entry).absolute()) for entry in path))
    return sorted(entries, key=lambda entry: Path(entry) in own)


class InBackground(Generic[Made]):
    """Make an object in a thread of its own, and keep that thread alive until `end`.

    On Linux, a process that ends with its parent ends with the thread that started it. So the thread must live as long
    as the object is used.

    Args:
        make: Makes the object. It is called at once, in the thread.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._made: Future[Made] = Future()
        self._over = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def result(self) -> Made:
        """Wait for `make` and return its result, or raise its error."""
        return self._made.result()

    def end(self, close: Callable[[Made], None]) -> None:
        """Wait for `make`, close its result, and let the thread end; after a failed `make` nothing is closed."""
        try:
            if self._made.exception() is None:
                close(self._made.result())
        finally:
            self._over.set()

    def _run(self) -> None:
        try:
            self._made.set_result(self._make())
        except BaseException as error:  # `result` raises it in the thread that asks
            self._made.set_exception(error)
        self._over.wait()
