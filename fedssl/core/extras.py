"""Libraries that a deployed client or server does without: ``pip install 'fedssl[simulation]'`` brings them."""

import importlib.util

from fedssl.core.errors import InputError


def is_installed(module: str) -> bool:
    """Return whether a top-level module could be imported; importing it may take a second, looking takes none."""
    return importlib.util.find_spec(module) is not None


def remedy_for(extra: str = "simulation") -> str:
    """Return the command that installs an extra."""
    return f"pip install 'fedssl[{extra}]'"


def require(module: str, field: str, what: str, extra: str = "simulation") -> None:
    """Refuse to go on without a library of an extra.

    Args:
        module: Its top-level module.
        field: Dotted name of the setting that asks for it, or the command.
        what: What needs it, as the subject of a sentence.
        extra: Brings it.

    Raises:
        InputError: It is not installed; says how to get it.
    """
    if not is_installed(module):
        raise InputError(field, f"{what} needs {module}, which is not installed", remedy_for(extra))
