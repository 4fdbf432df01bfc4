"""Files that are there whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fedssl.core.arrays import NamedArrays

PARTIAL = ".partial"
"""Ends the name of what is being written; whoever finds one may remove it."""


def as_safetensors(arrays: NamedArrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return named arrays as a safetensors file holds them, and what it says of them."""
    # Not save_file: it makes files that nobody but their owner can read.
    plain = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    content: bytes = save(plain, None if metadata is None else dict(metadata))
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file; a reader sees the old one or the new one, never a part, whatever is killed when."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        write_synced(partial, content)
    except OSError:
        partial.unlink(missing_ok=True)  # on a full disk, what there is of it is in the way
        raise
    partial.replace(path)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file through to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Write through to the disk which files a folder has, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
