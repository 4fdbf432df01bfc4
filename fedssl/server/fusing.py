"""Which clients of a round are fused into one step: a fixed function of the cohort, whoever runs it."""

import logging
from collections.abc import Sequence

from fedssl.clients.fused_app import fusion_keys, group_size, why_apart
from fedssl.engine.local_grid import LocalGrid
from fedssl.exchange.sums import Span
from fedssl.experiment.experiment import Experiment
from fedssl.fusion.fit import GROUP_SIZE, groups

log = logging.getLogger("fedssl.fusion")

FEWEST_GROUPS = 8
"""Groups of a large cohort at least, so that several workers have something to share."""

SMALLEST_CUT = 5
"""Clients that are not torn apart for that."""


def fused_size(experiment: Experiment, grid: object, by_sums: bool, cohort: Sequence[int]) -> int:
    """Return how many clients of a phase are trained in one step at most; 0 for one by one, and says why.

    Args:
        experiment: As it stands in the phase.
        grid: Where its clients are.
        by_sums: Whether the strategy does with sums.
        cohort: Clients of a round, by number; who is measured under ``engine.fuse = "auto"``.
    """
    fuse = experiment.engine.fuse
    if fuse == "off":
        return 0
    if not isinstance(grid, LocalGrid):
        why: str | None = "Flower's own runtime hands out one client at a time"
    elif not by_sums:
        why = f"strategy {experiment.strategy.kind!r} needs the reply of each client"
    else:
        why = why_apart(experiment)
    if why is not None:
        log.warning("engine.fuse: clients are trained one by one: %s", why)
        return 0
    largest = min(GROUP_SIZE, max(SMALLEST_CUT, -(-len(cohort) // FEWEST_GROUPS)))
    size = group_size(experiment, fuse, cohort, largest)
    if size == 0:
        log.warning("engine.fuse: clients are trained one by one: that was measured to be faster")
        return 0
    log.info("engine.fuse: clients are trained in groups of at most %d", size)
    return size


def fused_units(experiment: Experiment, clients: Sequence[int], size: int) -> list[Span]:
    """Return the groups of a cohort as positions, in order; all single where nobody is fused.

    Args:
        experiment: As it stands in the phase.
        clients: The cohort's numbers, in the order in which they are sent.
        size: Largest group; 0: nobody is fused.
    """
    if size == 0:
        return [(place, place + 1) for place in range(len(clients))]
    cut = groups(fusion_keys(experiment, clients), size)
    return [(places[0], places[-1] + 1) for places in cut]
