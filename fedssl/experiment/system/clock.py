"""The virtual clock: who is there, who answers in time, and when a round is over. Computed, and never slept.

It is the server's alone and looks at nothing that an engine could change - not at replies, nor at real time - so that
the same clients are late on every engine.
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
"""Times that the server asks in a round whether anybody is there."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a client that was asked to take part.

    Args:
        status: ``"ok"``: its reply counts; ``"late"``: past the deadline; ``"dropped"``: lost in the middle of the round;
            ``"surplus"``: as many as were wanted had answered before.
        seconds: Virtual time of its round, whether it came to its end or not.
    """

    status: Literal["ok", "late", "dropped", "surplus"]
    seconds: float


class VirtualClock:
    """Virtual time of one run.

    Args:
        system: The ``[system]`` section.
        num_clients: K.
        seed: The experiment's.

    Raises:
        InputError: A law or a file of the section is not right.
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
        """Return the clients that are there, ascending; where there is none, virtual time passes until one is.

        Raises:
            RunFailed: Nobody comes.
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
        """Decide who makes it, and let the round's time pass.

        The server stops at the reply that completes those it wanted, else when all have answered that still can; with a
        deadline it waits that long for anybody missing, for it cannot know who is lost.

        Args:
            server_round: The round.
            clients: Who was asked.
            wanted: Replies that are enough.
            seconds: What every client's round takes, (K,).
        """
        deadline = self._system.deadline or math.inf
        # One draw a client, asked or not: who is lost does not depend on who else was asked.
        lost = self._draws("dropout", server_round) < self.devices.dropout
        order = self._draws(
            "order", server_round
        )  # of equally fast ones, each round another comes first
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

    def train_at_server(self, images: int) -> None:
        """Let the time pass in which the server itself trains on so many images."""
        if self._system.server_speed is not None:
            self.now += images / self._system.server_speed

    def _draws(self, purpose: str, server_round: int) -> Floats:
        """Return a draw from [0, 1) for every client, (K,), in this round."""
        stream = rng.numpy_generator(self._seed, f"system/{purpose}", round=server_round)
        return stream.random(self._num_clients)
