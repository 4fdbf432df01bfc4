"""Federated semi-supervised learning: simulate a non-IID federation, then deploy the same clients.

``from fedssl import Experiment, run`` is the library; its names are imported when they are asked for, so that neither
``import fedssl`` nor the command line's help waits for torch.
"""

import importlib

TYPE_CHECKING = False  # not from typing: under `python -m fedssl` a file typing.py of the user's would be found first
if TYPE_CHECKING:
    from typing import Any

    from fedssl.config import Experiment as Experiment
    from fedssl.errors import InputError as InputError
    from fedssl.errors import RunFailed as RunFailed
    from fedssl.library import run as run
    from fedssl.record.run import Run as Run

__version__ = "0.1.0"
__all__ = ["Experiment", "InputError", "Run", "RunFailed", "__version__", "run"]

_HOMES = {
    "Experiment": "fedssl.config",
    "InputError": "fedssl.errors",
    "Run": "fedssl.record.run",
    "RunFailed": "fedssl.errors",
    "run": "fedssl.library",
}


def __getattr__(name: str) -> "Any":
    """Import what the library offers when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedssl.startup import installed_modules_first, prepare_surroundings

    prepare_surroundings()
    with installed_modules_first():
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """Return what can be asked for, imported or not."""
    return sorted({*globals(), *__all__})
