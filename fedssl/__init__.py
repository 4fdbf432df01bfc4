"""Federated semi-supervised learning: simulate a non-IID federation, then deploy the same clients.

``from fedssl import Experiment, run`` is the library; its names are imported when they are asked for, so that neither
``import fedssl`` nor the command line's help waits for torch.
"""

import importlib

TYPE_CHECKING = False  # not from typing: under `python -m fedssl` a file typing.py of the user's would be found first
if TYPE_CHECKING:
    from typing import Any

    from fedssl.app.library import run as run
    from fedssl.core.errors import InputError as InputError
    from fedssl.core.errors import RunFailed as RunFailed
    from fedssl.experiment.experiment import Experiment as Experiment
    from fedssl.views.run import Run as Run

__version__ = "0.1.0"
__all__ = ["Experiment", "InputError", "Run", "RunFailed", "__version__", "run"]

_HOMES = {
    "Experiment": "fedssl.experiment.experiment",
    "InputError": "fedssl.core.errors",
    "Run": "fedssl.views.run",
    "RunFailed": "fedssl.core.errors",
    "run": "fedssl.app.library",
}


def __getattr__(name: str) -> "Any":
    """Import what the library offers when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedssl.core.processes import installed_modules_first, prepare_surroundings

    prepare_surroundings()
    with installed_modules_first():
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """Return what can be asked for, imported or not."""
    return sorted({*globals(), *__all__})
