"""Which modules an experiment may import: the modules that it names may be a stranger's code."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from fedssl.core.plugin_modules import module_of, split_kind

EVERY_MODULE = "*"
"""This entry in a list of allowed plug-ins allows every module."""


@dataclass(frozen=True)
class Trust:
    """The modules that an experiment's kinds may import beside the built-in ones.

    No field is compared, because two experiments with the same settings are equal whatever modules they may import.

    Args:
        modules: Allowed modules, and packages with all modules below them; None allows every module.
        keeps_tables: Whether a section that names a forbidden module stays a table of settings. Otherwise such a
            section is an error.
    """

    modules: tuple[str, ...] | None = field(default=None, compare=False)
    keeps_tables: bool = field(default=False, compare=False)

    def allows(self, module: str) -> bool:
        """Say whether a module may be imported."""
        return self.modules is None or any(
            module == name or module.startswith(f"{name}.") for name in self.modules
        )


ALL = Trust()
"""Experiments of the person at this machine may import every module."""

NOBODY = Trust((), keeps_tables=True)
"""A record may import no module, because it may be a stranger's; its sections stay tables."""


def trust_only(listed: str) -> Trust:
    """Return the trust of a client whose config allows a list of modules or files, such as ``"mylab, other.py"``."""
    stems = (split_kind(name.strip())[0] for name in listed.split(",") if name.strip())
    names = tuple(module_of(stem) for stem in stems)
    return ALL if EVERY_MODULE in names else Trust(names)


_current: ContextVar[Trust] = ContextVar("trust", default=ALL)


def current_trust() -> Trust:
    """Return the trust that applies to experiments read now."""
    return _current.get()


@contextlib.contextmanager
def trusting(trust: Trust) -> Iterator[None]:
    """Apply a trust to all experiments that are read inside the block."""
    token = _current.set(trust)
    try:
        yield
    finally:
        _current.reset(token)
