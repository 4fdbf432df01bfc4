"""What clients keep, in checkpoints: each one writes what has changed since the last, and points at the rest.

A pack is an immutable file of states one after the other. An index says for every client in which pack its state is.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedssl.core.arrays import NamedArrays
from fedssl.core.files import PARTIAL
from fedssl.record.snapshot import KeptStates


class Spot(NamedTuple):
    """Where a client's state is, and of which round."""

    version: int
    pack: int
    offset: int
    size: int


Index = dict[int, Spot]
Stamp = Mapping[str, Any]
"""Size and checksum of a file."""


def pack_name(round: int) -> str:
    """Return the file of what a round's checkpoint added."""
    return f"round-{round:06d}.pack"


def write_pack(
    folder: Path, states: KeptStates, last: Index, stamps: Mapping[int, Stamp]
) -> tuple[Index, dict[int, Stamp]]:
    """Write what has changed since an index was made; packs of which less than half is still wanted are left behind.

    So all packs together are no more than about twice as large as what clients keep.

    Args:
        folder: Where packs are.
        states: What clients keep now.
        last: The last checkpoint's index.
        stamps: Of the packs it points at.

    Returns:
        The new index, and the stamps of the packs it points at.
    """
    versions = states.versions()
    same = {c: spot for c, spot in last.items() if versions.get(c) == spot.version}
    wanted = Counter[int]()
    for spot in same.values():
        wanted[spot.pack] += spot.size
    full = {pack for pack, size in wanted.items() if 2 * size >= stamps[pack]["bytes"]}
    index = {client: spot for client, spot in same.items() if spot.pack in full}
    changed = [client for client in versions if client not in index]
    kept = {pack: stamps[pack] for pack in full}
    if not changed:
        return index, kept
    path = folder / pack_name(states.round)
    partial = path.with_name(path.name + PARTIAL)
    digest, end = hashlib.sha256(), 0
    with partial.open("wb") as file:
        for client in changed:
            state = states.kept(client)
            file.write(state)
            digest.update(state)
            index[client] = Spot(versions[client], states.round, end, len(state))
            end += len(state)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return index, {**kept, states.round: {"bytes": end, "sha256": digest.hexdigest()}}


def index_arrays(index: Index) -> NamedArrays:
    """Return an index as named arrays, a line a client."""
    columns = np.array([[c, *spot] for c, spot in index.items()], np.int64).reshape(-1, 5).T
    return dict(zip(("client", *Spot._fields), columns, strict=True))


def index_of(arrays: NamedArrays) -> Index:
    """Read what `index_arrays` wrote."""
    columns = [arrays[name].tolist() for name in ("client", *Spot._fields)]
    return {client: Spot(*spot) for client, *spot in zip(*columns, strict=True)}


class PackedStates:
    """What clients kept when a round was over, as a checkpoint has it.

    Args:
        round: The round.
        folder: Where packs are.
        index: Which of them holds what.
    """

    def __init__(self, round: int, folder: Path, index: Index) -> None:
        self._round = round
        self._folder = folder
        self._index = index
        self._packs: dict[int, npt.NDArray[np.uint8]] = {}

    @property
    def round(self) -> int:
        """The last round that is over."""
        return self._round

    def versions(self) -> Mapping[int, int]:
        """Return, for every client that keeps something, the round that it kept it in."""
        return {client: spot.version for client, spot in self._index.items()}

    def kept(self, client: int) -> bytes:
        """Return what a client keeps."""
        _, pack, offset, size = self._index[client]
        if pack not in self._packs:
            self._packs[pack] = np.memmap(self._folder / pack_name(pack), np.uint8, "r")
        return self._packs[pack][offset : offset + size].tobytes()
