"""The base class of availabilities; an availability says which clients can take part in a round."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedssl.core.registry import Family, Plugin

Mask = npt.NDArray[np.bool_]


class Availability(Plugin):
    """A rule that says which clients are available at a virtual second.

    Example:
        A new availability defines `available` and `next_change`:

        >>> class EvenClients(Availability):
        ...     def available(self, now, server_round, attempt, num_clients, seed):
        ...         return np.arange(num_clients) % 2 == 0
        ...     def next_change(self, now, num_clients):
        ...         return now
        >>> EvenClients().available(0.0, 1, 0, num_clients=4, seed=0).tolist()
        [True, False, True, False]
    """

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def available(
        self, now: float, server_round: int, attempt: int, num_clients: int, seed: int
    ) -> Mask:
        """Return which clients can take part in a round that starts now, shape (K,).

        Args:
            now: Virtual seconds since the run began.
            server_round: The round, counted from 1.
            attempt: How often the server has already asked in vain in this round.
            num_clients: K.
            seed: The experiment's seed.

        Raises:
            InputError: A file or a number that the rule uses is wrong.
        """

    @abstractmethod
    def next_change(self, now: float, num_clients: int) -> float:
        """Return the virtual second at which the server asks again after it has asked in vain.

        Args:
            now: Virtual seconds since the run began.
            num_clients: K.

        Raises:
            InputError: A file that the rule uses is wrong.
            RunFailed: No client will ever be available.
        """


AVAILABILITIES = Family(
    "availability",
    "fedssl.experiment.system.availability",
    Availability,
    "system.availability",
    default="always",
)
