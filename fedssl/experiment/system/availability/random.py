"""Clients that are available by chance, some more often than others."""

from typing import Annotated

from pydantic import Field

from fedssl.core import rng
from fedssl.experiment.system.availability.base import Availability, Mask
from fedssl.experiment.system.laws.base import LAWS, Law

PROBABILITIES = LAWS.at("system.availability.probability", None)


class Random(Availability):
    """Make every client available with a probability of its own, drawn anew whenever the server asks."""

    probability: Annotated[Law, PROBABILITIES] = Field(
        description="law of the probability that a client is available, in (0, 1]"
    )
    retry: float = Field(
        60.0,
        gt=0,
        description="virtual seconds after which the server asks again if no client is available",
    )

    def available(
        self, now: float, server_round: int, attempt: int, num_clients: int, seed: int
    ) -> Mask:
        """Return which clients are available in this round and attempt; see `Availability.available`."""
        law = rng.make_numpy_generator(seed, "system/availability")
        probs = self.probability.draw_within(num_clients, law, PROBABILITIES.section, 0, 1)
        chance = rng.make_numpy_generator(seed, f"system/available/{attempt}", round=server_round)
        return chance.random(num_clients) < probs

    def next_change(self, now: float, num_clients: int) -> float:
        """Return the second that is `retry` after `now`; see `Availability.next_change`."""
        return now + self.retry
