"""Federated semi-supervised learning: simulate a non-IID federation, then deploy the same clients.

``from fedssl import Experiment, run`` is the library. Its names are imported on their first use, so that neither
``import fedssl`` nor the command line's help waits for torch.
"""

import importlib

# Not imported from typing: under `python -m fedssl`, Python would find a user's file typing.py first.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fedssl.app.library import compare as compare
    from fedssl.app.library import run as run
    from fedssl.core.errors import InputError as InputError
    from fedssl.core.errors import RunFailed as RunFailed
    from fedssl.experiment.experiment import Experiment as Experiment
    from fedssl.views.run import Run as Run

__version__ = "0.1.0"
__all__ = ["Experiment", "InputError", "Run", "RunFailed", "__version__", "compare", "run"]

_HOMES = {
    "Experiment": "fedssl.experiment.experiment",
    "InputError": "fedssl.core.errors",
    "Run": "fedssl.views.run",
    "RunFailed": "fedssl.core.errors",
    "compare": "fedssl.app.library",
    "run": "fedssl.app.library",
}


def __getattr__(name: str) -> "Any":
    """Import a name of the library on its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedssl.core.processes import installed_modules_first, prepare_surroundings

    prepare_surroundings()
    with installed_modules_first():
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """Return all names of the library, imported or not."""
    return sorted({*globals(), *__all__})
