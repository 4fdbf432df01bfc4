"""Optional libraries, which a deployed client or server does not need: ``pip install 'fedssl[simulation]'``."""

import importlib.util

from fedssl.core.errors import InputError


def is_installed(module: str) -> bool:
    """Return whether a top-level module is installed, without importing it, which may take a second."""
    return importlib.util.find_spec(module) is not None


def install_command(extra: str = "simulation") -> str:
    """Return the command that installs an extra."""
    return f"pip install 'fedssl[{extra}]'"


def require(module: str, field: str, what: str, extra: str = "simulation") -> None:
    """Refuse to go on without an optional library.

    Args:
        module: The library's top-level module.
        field: Dotted name of the setting, or the command, that asks for the library.
        what: What needs the library, as the subject of a sentence.
        extra: The extra of fedssl that installs the library.

    Raises:
        InputError: The library is not installed. The error says how to install it.
    """
    if not is_installed(module):
        raise InputError(
            field, f"{what} needs {module}, which is not installed", install_command(extra)
        )
