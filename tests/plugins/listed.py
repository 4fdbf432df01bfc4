"""A strategy that asks the listed clients in every round, some of them several times, and may send each its own array."""

import numpy as np

from fedssl.exchange import protocol
from fedssl.exchange.sums import WeightedSum, cohort_mean
from fedssl.strategies.base import Strategy
from fedssl.strategies.by_replies import ReplyStrategy


class Listed(Strategy):
    """Take the plain mean of the listed clients' replies, and record at which places replies count."""

    repeats_clients = True

    clients: tuple[int, ...] = (4, 1, 4)
    sends: bool = False

    def build(self, cohorts):
        return _Listed(self, cohorts)


class _Listed(ReplyStrategy):
    def __init__(self, settings, cohorts):
        super().__init__(cohorts)
        self._settings = settings
        self._counted = {}

    def select(self, server_round):
        return list(self._settings.clients)

    def extra(self, server_round, client):
        """Send client k the numbers 0 .. k, times the round; nothing to client 0."""
        if not self._settings.sends or client == 0:
            return {}
        return {"target": {"numbers": np.arange(client + 1, dtype=np.float32) * server_round}}

    def aggregate(self, server_round, arrays, replies, buffers):
        self._counted = {f"place.{place}": float(reply.node) for place, reply in replies.items()}
        total = WeightedSum(len(self._settings.clients))
        for place in range(len(self._settings.clients)):
            if place in replies:
                total.add(place, replies[place].arrays[protocol.ARRAYS], 1.0)
            else:
                total.skip(place)
        return cohort_mean(*total.result(), arrays)

    def numbers(self):
        return self._counted
