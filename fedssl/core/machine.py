"""What this machine has: cores, memory."""

import math
import os

MB = 1_000_000
"""Bytes of a megabyte, as settings and messages count them."""


def available_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> float:
    """Return the bytes of memory this machine has; infinite where it does not say."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if not all(name in os.sysconf_names for name in names):
        return math.inf
    return float(math.prod(os.sysconf(name) for name in names))
