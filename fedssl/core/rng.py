"""The one source of randomness: every stream derives from (seed, purpose, round, client).

The draws of one component cannot shift the draws of another, and no schedule of clients over workers can change a
result. torch's CPU generator keeps only 32 bits of a seed, so two names share a stream with a chance of one in four
billion.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

SERVER = -1
"""The server's number where clients are numbered from 0: of its random streams, its images and its rows in the record."""


def derive_seed(seed: int, purpose: str, *, round: int = 0, client: int = SERVER) -> int:
    """Hash a stream's name to a 63-bit seed, the same on every machine.

    Args:
        seed: The experiment's seed.
        purpose: What the random numbers are for, e.g. ``"cohort"`` or ``"augment/strong"``.
        round: Round that the stream belongs to, counted from 1; 0 for a stream of no round.
        client: Number of the client that the stream belongs to; -1 for the server's own streams.
    """
    name = f"{seed}|{purpose}|{round}|{client}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def make_generator(
    seed: int,
    purpose: str,
    *,
    round: int = 0,
    client: int = SERVER,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """Return a fresh torch generator for one stream; arguments as in `derive_seed`."""
    stream = torch.Generator(device=device)
    stream.manual_seed(derive_seed(seed, purpose, round=round, client=client))
    return stream


def make_numpy_generator(
    seed: int, purpose: str, *, round: int = 0, client: int = SERVER
) -> np.random.Generator:
    """Return a fresh numpy generator for one stream; arguments as in `derive_seed`."""
    return np.random.default_rng(derive_seed(seed, purpose, round=round, client=client))


_global_streams_turn = threading.RLock()
"""torch's global streams belong to the process; a thread that needs them waits until another one has put them back."""


@contextmanager
def seeded_torch(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global streams inside the block, for code that takes no generator, then put them back.

    Threads of a process take turns. Only weight initialization and dropout draw from the global streams. Only this function, `reseed` and `rewinder`
    touch those streams.
    """
    with _global_streams_turn:
        rewind = make_rewinder(device)
        try:
            reseed(seed, device)
            yield
        finally:
            rewind()


def reseed(seed: int, device: torch.device | str = "cpu") -> None:
    """Seed torch's global streams anew; call it within `seeded_torch` only.

    `torch.manual_seed` would do the same, but it also queues a call with a stack trace for every GPU that is missing,
    and that costs more than a small network's forward pass.
    """
    for stream in _global_streams(torch.device(device)):
        stream.manual_seed(seed)


def make_rewinder(device: torch.device | str = "cpu") -> Callable[[], None]:
    """Return a function that sets torch's global streams back to where they stand now, each time it is called.

    Two passes through a network that start from the same point of the streams draw the same dropout masks.
    """
    kept = [(stream, stream.get_state()) for stream in _global_streams(torch.device(device))]

    def rewind() -> None:
        for stream, state in kept:
            stream.set_state(state)

    return rewind


def _global_streams(device: torch.device) -> list[torch.Generator]:
    streams = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        streams.append(torch.cuda.default_generators[device.index or 0])
    return streams
