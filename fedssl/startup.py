"""What makes a process ready sooner: the garbage collector rests while modules are imported."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import in here what stays for the life of the process.

    The half million objects that torch and Flower make on import are no garbage, yet Python would look through all of
    them a hundred times over while they are made, again every so often later, and once more when the process ends: a
    third of the time that `import torch` takes. Here nobody looks, and afterwards they count as permanent.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
