"""Decide which clients of a round are fused into one step: a fixed function of the cohort, whatever engine runs it."""

import logging
from collections.abc import Sequence

import numpy as np

from fedssl.clients.fused_app import fusion_keys, group_size, why_not_together
from fedssl.core.arrays import NamedArrays
from fedssl.engine.client_grid import ClientGrid
from fedssl.exchange.sums import Span
from fedssl.experiment.experiment import PhasePlan
from fedssl.fusion.groups import GROUP_SIZE, cut_groups
from fedssl.server.phase import Phase

log = logging.getLogger("fedssl.fusion")

FEWEST_GROUPS = 8
"""A large cohort is cut into at least this many groups, so that several workers have something to do."""

SMALLEST_CUT = 5
"""Groups of this many clients are always allowed, even if a cohort then has fewer groups than `FEWEST_GROUPS`."""


class Fusing:
    """Decide how many clients are fused into one step in each phase.

    The number is decided in a phase's first round and then kept, because a second measurement could differ.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    def kept(self) -> NamedArrays:
        """Return the largest group of each phase that has begun."""
        return {"phases": np.array([*self._sizes]), "sizes": np.array([*self._sizes.values()])}

    def take_up(self, kept: NamedArrays) -> None:
        """Go on with what `kept` returned."""
        self._sizes = dict(zip(kept["phases"].tolist(), kept["sizes"].tolist(), strict=True))

    def units(self, phase: Phase, grid: ClientGrid, clients: Sequence[int]) -> list[Span]:
        """Return which clients of a cohort train together, as positions; units of one client each if none are fused.

        Args:
            phase: The phase.
            grid: The grid that reaches its clients.
            clients: The cohort's client numbers, in the order in which requests are sent.
        """
        if phase.index not in self._sizes:
            self._sizes[phase.index] = fused_size(phase, grid, clients)
        return fused_units(phase.experiment, clients, self._sizes[phase.index])


def fused_size(phase: Phase, grid: ClientGrid, cohort: Sequence[int]) -> int:
    """Return how many clients of a phase train in one step at most; 0: each trains alone, and the log says why.

    Args:
        phase: The phase.
        grid: The grid that reaches its clients.
        cohort: Client numbers of a round; some of these clients are measured under ``engine.fuse = "auto"``.
    """
    experiment, fuse = phase.experiment, phase.experiment.engine.fuse
    if fuse == "off":
        return 0
    if not grid.is_simulation:
        why: str | None = "Flower's own runtime hands out one client at a time"
    elif not phase.by_sums:
        why = f"strategy {experiment.strategy.kind!r} needs the reply of each client"
    else:
        why = why_not_together(experiment)
    if why is not None:
        log.warning("engine.fuse: clients are trained one by one: %s", why)
        return 0
    largest = min(GROUP_SIZE, max(SMALLEST_CUT, -(-len(cohort) // FEWEST_GROUPS)))
    size = group_size(experiment, fuse, cohort, largest)
    if size == 0:
        log.warning(
            "engine.fuse: clients are trained one by one: a measurement says that this is faster"
        )
        return 0
    log.info("engine.fuse: clients are trained in groups of at most %d", size)
    return size


def fused_units(experiment: PhasePlan, clients: Sequence[int], size: int) -> list[Span]:
    """Return the groups of a cohort as positions, in order; groups of one client each if none are fused.

    Args:
        experiment: The experiment as it stands in the phase.
        clients: The cohort's client numbers, in the order in which requests are sent.
        size: Largest number of clients in a group; 0: no clients are fused.
    """
    if size == 0:
        return [(place, place + 1) for place in range(len(clients))]
    cut = cut_groups(fusion_keys(experiment, clients), size)
    return [(places[0], places[-1] + 1) for places in cut]
