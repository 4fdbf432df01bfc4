"""The devices of a federation, drawn once: what a client's round costs on its own."""

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
    """One device a client; every field has shape (K,).

    Args:
        speed: Images it trains on in a second.
        download, upload: Of its line, Mbit/s.
        dropout: Probability that it is lost in a round.
    """

    speed: Floats
    download: Floats
    upload: Floats
    dropout: Floats

    def round_seconds(self, images: Floats, bytes_down: float, bytes_up: float) -> Floats:
        """Return the virtual seconds that each client's round takes, (K,).

        Args:
            images: That all views of its round come to, (K,).
            bytes_down, bytes_up: Sizes of a request and of a reply.
        """
        line = bytes_down / self.download + bytes_up / self.upload
        return line * (BITS_PER_BYTE / MEGA) + images / self.speed


def draw_devices(system: System, num_clients: int, seed: int) -> Devices:
    """Draw every client's device; the same for the same seed.

    Raises:
        InputError: A law gave a value that is none, such as a negative speed; or its file is not right.
    """

    def drawn(name: str) -> Floats:
        law: Law = getattr(system, name)
        stream = rng.numpy_generator(seed, f"system/{name}")
        if name == "dropout":
            return law.draw_within(
                num_clients, stream, "system.dropout", 0, 1, including_least=True
            )
        return law.draw_within(num_clients, stream, f"system.{name}", 0)

    return Devices(*(drawn(name) for name in ("speed", "download", "upload", "dropout")))
