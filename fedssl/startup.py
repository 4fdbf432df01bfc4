"""What makes a process ready sooner: imports at which nobody looks for garbage, and work in the background."""

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

Made = TypeVar("Made")


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
    """Return the PYTHONPATH with which another process finds the modules that this one does."""
    return os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)


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
