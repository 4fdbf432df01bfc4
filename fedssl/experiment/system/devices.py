"""The devices of a federation, drawn once, and the virtual time that a client's round takes on its device."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedssl.core import rng
from fedssl.experiment.system.laws.base import Law
from fedssl.experiment.system.section import System

Floats = npt.NDArray[np.float64]

BITS_PER_BYTE = 8
MEGA = 1e6


@dataclass(frozen=True)
class Devices:
    """One device per client; every field has shape (K,).

    Args:
        speed: Images that the device trains on per second.
        download, upload: Speed of the device's line, Mbit/s.
        dropout: Probability that the device is lost in a round.
    """

    speed: Floats
    download: Floats
    upload: Floats
    dropout: Floats

    def round_seconds(
        self, images: Floats, bytes_down: float | Floats, bytes_up: float | Floats
    ) -> Floats:
        """Return the virtual seconds that each client's round takes, (K,).

        Args:
            images: Work of each client's round, in images that one network trains on, (K,).
            bytes_down, bytes_up: Sizes of a request and of a reply, bytes; one for all clients, or (K,).
        """
        line = bytes_down / self.download + bytes_up / self.upload
        return line * (BITS_PER_BYTE / MEGA) + images / self.speed


def draw_devices(system: System, num_clients: int, seed: int) -> Devices:
    """Draw every client's device; the same seed gives the same devices.

    Raises:
        InputError: A law gives an impossible value, such as a negative speed, or the law's file is wrong.
    """

    def draw_numbers(name: str) -> Floats:
        law: Law = getattr(system, name)
        stream = rng.make_numpy_generator(seed, f"system/{name}")
        if name == "dropout":
            return law.draw_within(
                num_clients, stream, "system.dropout", 0, 1, including_least=True
            )
        return law.draw_within(num_clients, stream, f"system.{name}", 0)

    return Devices(*(draw_numbers(name) for name in ("speed", "download", "upload", "dropout")))
