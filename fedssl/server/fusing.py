"""Decide which clients of a round are fused into one step: a fixed function of the experiment, whatever engine runs it."""

import functools
import logging
from collections.abc import Callable, Sequence

from fedssl.clients.fused_app import all_fusion_keys, fusion_keys, why_not_together
from fedssl.engine.client_grid import ClientGrid
from fedssl.exchange.sums import Span
from fedssl.fusion.groups import LARGEST, FusionKey, cut_groups, group_size, share_of
from fedssl.models.cost import counts_all, multiplications
from fedssl.server.phase import Phase

log = logging.getLogger("fedssl.fusion")

Largest = Callable[[FusionKey], int]
"""A function from a client's key to the largest group of such clients; 0: they train alone."""


class Fusing:
    """Decide which clients are fused into one step.

    Args:
        shape: Shape of an image, (C, H, W).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._largest: dict[int, Largest | None] = {}

    def units(self, phase: Phase, grid: ClientGrid, clients: Sequence[int]) -> list[Span]:
        """Return which clients of a cohort train together, as positions; units of one client each if none are fused.

        Args:
            phase: The phase.
            grid: The grid that reaches its clients.
            clients: The cohort's client numbers, in the order in which requests are sent.
        """
        if phase.index not in self._largest:
            self._largest[phase.index] = largest_groups(phase, grid, self._shape)
        largest = self._largest[phase.index]
        if largest is None:
            return [(place, place + 1) for place in range(len(clients))]
        cut = cut_groups(fusion_keys(phase.experiment, clients), largest)
        return [(places[0], places[-1] + 1) for places in cut]


def largest_groups(phase: Phase, grid: ClientGrid, shape: tuple[int, ...]) -> Largest | None:
    """Return how large the groups of a phase are; None: each client trains alone.

    The log says why clients are trained alone if the experiment names a size, and that they are fused if it does not.

    Args:
        phase: The phase.
        grid: The grid that reaches its clients.
        shape: Shape of an image, (C, H, W).
    """
    engine = phase.experiment.engine
    fuse = engine.fuse
    if fuse == "off" or engine.has_teams:
        return None
    why = _why_never(phase, grid)
    largest = _as_asked(phase, fuse)
    if fuse == "auto" and why is None:
        largest = _by_rule(phase, shape)
        if not any(largest(key) for key in all_fusion_keys(phase.experiment)):
            return None
    why = why or why_not_together(phase.experiment)
    if why is None:
        if fuse == "auto":
            log.info(
                'small clients are trained together (engine.fuse = "off" would train each alone)'
            )
        return largest
    if fuse != "auto":
        log.warning("engine.fuse: clients are trained one by one: %s", why)
    return None


def _by_rule(phase: Phase, shape: tuple[int, ...]) -> Largest:
    experiment, sample = phase.experiment, phase.experiment.federation.sample
    method, batch = experiment.method, experiment.train.batch_size
    network = method.classifier(phase.network)
    is_counted = counts_all(network)
    image = multiplications(network, shape)

    @functools.cache
    def largest(key: FusionKey) -> int:
        if key.num_steps == 0:
            return 0  # such a client has nothing to do
        labeled = batch if key.is_labeled else 0
        images = method.images_per_step(labeled, batch * method.views().ratio)
        return group_size(image * images, key.num_steps, sample) if is_counted else 0

    return largest


def _as_asked(phase: Phase, fuse: int | str) -> Largest:
    share = min(LARGEST, share_of(phase.experiment.federation.sample, is_short=True))
    size = fuse if isinstance(fuse, int) else share
    return lambda key: size


def _why_never(phase: Phase, grid: ClientGrid) -> str | None:
    """Return why no client of this grid and strategy can be fused, whatever it learns; or None."""
    if not grid.is_simulation:
        return "each deployed client trains alone, and so do clients on the flower engine"
    if not phase.by_sums:
        return f"strategy {phase.experiment.strategy.kind!r} needs the reply of each client"
    return None
