"""How many cores and how much memory this machine has."""

import math
import os

MB = 1_000_000
"""A megabyte has this many bytes in all settings and messages."""


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> float:
    """Return how many bytes of memory this machine has; infinity if the system does not tell."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if not all(name in os.sysconf_names for name in names):
        return math.inf
    return float(math.prod(os.sysconf(name) for name in names))
