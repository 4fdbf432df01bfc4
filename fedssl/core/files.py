"""Write files so that a reader finds a whole file or none."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fedssl.core.arrays import NamedArrays

PARTIAL = ".partial"
"""The name of a file that is still being written ends in this. Anybody who finds such a file may remove it."""


def as_safetensors(arrays: NamedArrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file that holds named arrays and some metadata."""
    # save_file is not used: the files that it makes can be read by their owner only.
    plain = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    content: bytes = save(plain, None if metadata is None else dict(metadata))
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part, even if the writer is killed."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        write_synced(partial, content)
    except OSError:
        partial.unlink(missing_ok=True)  # a partial file would take up room on a full disk
        raise
    partial.replace(path)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's list of files, on systems that can do so (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
