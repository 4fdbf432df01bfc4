"""Packs hold what clients keep. A checkpoint writes only changed states and points at the other ones.

A pack is a file of concatenated states that is never changed. An index says which pack holds a client's state.
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
    """The place of a client's state.

    Args:
        version: Round in which the client kept the state.
        pack: Number of the pack that holds the state: the round of the checkpoint that wrote the pack.
        offset: Offset of the state in the pack (bytes).
        size: Size of the state (bytes).
    """

    version: int
    pack: int
    offset: int
    size: int


Index = dict[int, Spot]
Stamp = Mapping[str, Any]
"""The size (``bytes``) and the checksum (``sha256``) of a file."""


def pack_name(round: int) -> str:
    """Return the file name of the pack that the checkpoint of a round wrote."""
    return f"round-{round:06d}.pack"


def write_pack(
    folder: Path, states: KeptStates, last: Index, stamps: Mapping[int, Stamp]
) -> tuple[Index, dict[int, Stamp]]:
    """Write a pack of the states that have changed since the last checkpoint.

    If less than half of an older pack is still needed, its states are written again and the pack is given up. So all
    packs together are at most about twice as large as what clients keep.

    Args:
        folder: Folder of the packs.
        states: What clients keep now.
        last: Index of the last checkpoint.
        stamps: Stamps of the packs that this index points at.

    Returns:
        The new index, and the stamps of the packs that it points at.
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
    """Return an index as named arrays, one for each column; each array has one entry a client."""
    columns = np.array([[c, *spot] for c, spot in index.items()], np.int64).reshape(-1, 5).T
    return dict(zip(("client", *Spot._fields), columns, strict=True))


def index_of(arrays: NamedArrays) -> Index:
    """Return the index that `index_arrays` turned into arrays."""
    columns = [arrays[name].tolist() for name in ("client", *Spot._fields)]
    return {client: Spot(*spot) for client, *spot in zip(*columns, strict=True)}


class PackedStates:
    """What clients kept after a round, read from a checkpoint's packs.

    Args:
        round: The round.
        folder: Folder of the packs.
        index: Place of each client's state.
    """

    def __init__(self, round: int, folder: Path, index: Index) -> None:
        self._round = round
        self._folder = folder
        self._index = index
        self._packs: dict[int, npt.NDArray[np.uint8]] = {}

    @property
    def round(self) -> int:
        """The round after which clients kept these states."""
        return self._round

    def versions(self) -> Mapping[int, int]:
        """Return the round in which each client kept its state; clients that keep nothing are left out."""
        return {client: spot.version for client, spot in self._index.items()}

    def kept(self, client: int) -> bytes:
        """Return the state that a client keeps, as bytes."""
        _, pack, offset, size = self._index[client]
        if pack not in self._packs:
            self._packs[pack] = np.memmap(self._folder / pack_name(pack), np.uint8, "r")
        return self._packs[pack][offset : offset + size].tobytes()
