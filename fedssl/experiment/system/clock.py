"""The virtual clock: it computes which clients are available, which answer in time, and when a round is over.

The clock never sleeps. It belongs to the server and looks at nothing that an engine could change, such as replies or
real time, so that the same clients are late on every engine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedssl.core import rng
from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import RunFailed
from fedssl.data.images import Rows
from fedssl.experiment.system.devices import Devices, Floats, draw_devices
from fedssl.experiment.system.section import System

MOST_ATTEMPTS = 1000
"""The server asks at most this many times in a round whether a client is available."""


@dataclass(frozen=True)
class Fate:
    """The outcome of a round for a client that was asked to take part.

    Args:
        status: ``"ok"``: its reply counts; ``"late"``: its reply comes after the deadline; ``"dropped"``: the client is
            lost in the middle of the round; ``"surplus"``: as many clients as were wanted answer before it.
        seconds: Virtual seconds that its round takes, whether the client completes it or not.
    """

    status: Literal["ok", "late", "dropped", "surplus"]
    seconds: float


class VirtualClock:
    """Virtual time of one run.

    Args:
        system: The ``[system]`` section.
        num_clients: K.
        seed: The experiment's seed.

    Raises:
        InputError: A law or a file of the section is wrong.
    """

    def __init__(self, system: System, num_clients: int, seed: int) -> None:
        self.now = 0.0
        self.devices: Devices = draw_devices(system, num_clients, seed)
        self._system = system
        self._num_clients = num_clients
        self._seed = seed

    def kept(self) -> NamedArrays:
        """Return what time it is."""
        return {"now": np.array(self.now)}

    def take_up(self, kept: NamedArrays) -> None:
        """Go on at the time that `kept` returned."""
        self.now = float(kept["now"])

    def open_round(self, server_round: int) -> Rows:
        """Return the available clients, ascending; while there are none, let virtual time pass.

        Raises:
            RunFailed: No client becomes available.
        """
        availability = self._system.availability
        began = self.now
        for attempt in range(MOST_ATTEMPTS):
            there = availability.available(
                self.now, server_round, attempt, self._num_clients, self._seed
            )
            if there.any():
                return np.flatnonzero(there)
            self.now = availability.next_change(self.now, self._num_clients)
        raise RunFailed(
            f"no client was available for round {server_round} from virtual second {began:.0f} to {self.now:.0f}"
        )

    def close_round(
        self, server_round: int, clients: Sequence[int], wanted: int, seconds: Floats
    ) -> dict[int, Fate]:
        """Return the fate of each client that was asked, and let the round's virtual time pass.

        The round ends with the reply that completes the number of replies wanted. If fewer clients can answer, the
        round ends when all of these have answered. If there is a deadline, the server waits until then for missing
        replies, because it cannot know which clients are lost.

        Args:
            server_round: The round, counted from 1.
            clients: Clients that were asked.
            wanted: Number of replies that is enough.
            seconds: Virtual seconds that every client's round takes, (K,).
        """
        deadline = self._system.deadline or math.inf
        # Every client has a draw, asked or not, so that which clients are lost does not depend on which are asked.
        lost = self._draw_for_every_client("dropout", server_round) < self.devices.dropout
        # Among equally fast clients, another client comes first in each round.
        order = self._draw_for_every_client("order", server_round)
        answering = sorted(
            (float(seconds[c]), float(order[c]), c)
            for c in clients
            if not lost[c] and seconds[c] <= deadline
        )
        counted = {client for *_, client in answering[:wanted]}
        fates = {}
        for client in clients:
            if client in counted:
                fates[client] = Fate("ok", float(seconds[client]))
            elif lost[client]:
                fates[client] = Fate("dropped", float(seconds[client]))
            elif seconds[client] > deadline:
                fates[client] = Fate("late", float(seconds[client]))
            else:
                fates[client] = Fate("surplus", float(seconds[client]))
        last = max((fates[client].seconds for client in counted or clients), default=0.0)
        complete = len(counted) == min(wanted, len(clients))
        self.now += last if complete or self._system.deadline is None else deadline
        return fates

    def train_at_server(self, images: float) -> None:
        """Let the virtual time pass that the server needs for this work, in images that one network trains on."""
        if self._system.server_speed is not None:
            self.now += images / self._system.server_speed

    def _draw_for_every_client(self, purpose: str, server_round: int) -> Floats:
        """Return a draw from [0, 1) for every client in this round, (K,)."""
        stream = rng.make_numpy_generator(self._seed, f"system/{purpose}", round=server_round)
        return stream.random(self._num_clients)
