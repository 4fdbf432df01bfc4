"""What every availability is: a law that says who can take part in a round."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedssl.core.registry import Family, Plugin

Mask = npt.NDArray[np.bool_]


class Availability(Plugin):
    """A law that says, at every virtual second, which clients are there."""

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def available(
        self, now: float, server_round: int, attempt: int, num_clients: int, seed: int
    ) -> Mask:
        """Return who can take part in a round that starts now, (K,).

        Args:
            now: Virtual seconds since the run began.
            server_round: The round, counted from 1.
            attempt: How often the server has asked in vain in this round, from 0.
            num_clients: K.
            seed: The experiment's seed.

        Raises:
            InputError: A file or a number that the law rests on is wrong.
        """

    @abstractmethod
    def next_change(self, now: float, num_clients: int) -> float:
        """Return the virtual second at which to ask again, after the server has asked in vain.

        Args:
            now: Virtual seconds since the run began.
            num_clients: K.

        Raises:
            InputError: A file that the law rests on is wrong.
            RunFailed: Nobody will ever come.
        """


AVAILABILITIES = Family(
    "availability",
    "fedssl.experiment.system.availability",
    Availability,
    "system.availability",
    default="always",
)
