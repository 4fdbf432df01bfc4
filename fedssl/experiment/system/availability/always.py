"""Clients that are always available."""

import numpy as np

from fedssl.experiment.system.availability.base import Availability, Mask


class Always(Availability):
    """Make every client available at every second."""

    def available(
        self, now: float, server_round: int, attempt: int, num_clients: int, seed: int
    ) -> Mask:
        """Return true for every client; see `Availability.available`."""
        return np.ones(num_clients, dtype=np.bool_)

    def next_change(self, now: float, num_clients: int) -> float:
        """Return `now`: there is nothing to wait for."""
        return now
