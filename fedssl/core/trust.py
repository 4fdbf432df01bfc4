"""Whose code may be imported: the modules that an experiment names may come from somebody else."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

EVERY_MODULE = "*"
"""What a list of allowed plug-ins says to allow every module."""


@dataclass(frozen=True)
class Trust:
    """Which modules the kinds of an experiment may import beside the built-in ones.

    Two experiments with the same settings are equal whatever either may import, so no field is compared.

    Args:
        modules: Modules, and packages with all modules below them; None allows every module.
        keeps_tables: Whether a section that names another module stays a table of settings; it is an error otherwise.
    """

    modules: tuple[str, ...] | None = field(default=None, compare=False)
    keeps_tables: bool = field(default=False, compare=False)

    def allows(self, module: str) -> bool:
        """Say whether a module may be imported."""
        return self.modules is None or any(
            module == name or module.startswith(f"{name}.") for name in self.modules
        )


ALL = Trust()
"""For the experiments of the person at this machine."""

NOBODY = Trust((), keeps_tables=True)
"""For a record, which may be a stranger's."""


def only(listed: str) -> Trust:
    """Return the trust of a client that allows a list of modules, such as ``"mylab, other.module"``."""
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    return ALL if EVERY_MODULE in names else Trust(names)


_current: ContextVar[Trust] = ContextVar("trust", default=ALL)


def current() -> Trust:
    """Return the trust under which experiments are read now."""
    return _current.get()


@contextlib.contextmanager
def trusting(trust: Trust) -> Iterator[None]:
    """Read experiments under a trust inside the block."""
    token = _current.set(trust)
    try:
        yield
    finally:
        _current.reset(token)
