"""The one source of randomness: every stream derives from (seed, purpose, round, client).

Two streams with different names never share a number, so that what one component draws cannot shift
what another one draws, and no schedule of clients over workers can change a result.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *, round: int = 0, client: int = -1) -> int:
    """Hash a stream's name to a 63-bit seed, the same on every machine.

    Args:
        seed: The experiment's seed.
        purpose: What the numbers are for, e.g. ``"cohort"`` or ``"augment/strong"``.
        round: Round the stream belongs to, counted from 1; 0 for none.
        client: Client number the stream belongs to; -1 for the server's own.
    """
    name = f"{seed}|{purpose}|{round}|{client}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def generator(
    seed: int,
    purpose: str,
    *,
    round: int = 0,
    client: int = -1,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """Return a fresh torch generator for one stream; arguments as in `derive_seed`."""
    stream = torch.Generator(device=device)
    stream.manual_seed(derive_seed(seed, purpose, round=round, client=client))
    return stream


def numpy_generator(
    seed: int, purpose: str, *, round: int = 0, client: int = -1
) -> np.random.Generator:
    """Return a fresh numpy generator for one stream; arguments as in `derive_seed`."""
    return np.random.default_rng(derive_seed(seed, purpose, round=round, client=client))


@contextmanager
def seeded_torch(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Lend torch's global stream a seed for code that takes no generator, then put it back.

    Weight initialization and dropout draw from the global stream and nothing else; this is the only
    place that touches it.
    """
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
