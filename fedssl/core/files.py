"""Write files so that a reader finds a whole file or none, and read the whole lines of a file that still grows."""

import os
from pathlib import Path

PARTIAL = ".partial"
"""The name of a file that is still being written ends in this. Anybody who finds such a file may remove it."""


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


def whole_lines(path: Path, length: int | None = None) -> str:
    """Return the text of a file up to the end of its last whole line.

    A last line without an end is still being written, or its write was interrupted.

    Args:
        path: The file.
        length: Number of bytes to read; None: the whole file.
    """
    with path.open("rb") as file:
        content = file.read(-1 if length is None else length)
    return content[: content.rfind(b"\n") + 1].decode()
