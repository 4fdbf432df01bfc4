"""A temporary file without a name, for bytes that do not fit into memory."""

import tempfile
from collections import defaultdict
from typing import BinaryIO, NamedTuple

from fedssl.core.errors import RunFailed

SMALLEST = 4096
"""The smallest slot of the file has this many bytes."""


class Place(NamedTuple):
    """Where some bytes are in the file: their offset and their number."""

    offset: int
    size: int


class Spill:
    """A temporary file of slots that can be used again.

    The file has no name, so nothing is left of it however the process ends. It lies in the system's folder for
    temporary files; the environment variable ``TMPDIR`` names another folder.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._end = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    def write(self, data: bytes) -> Place:
        """Write bytes and return where they are.

        Raises:
            RunFailed: The disk has no room, or there is no folder for temporary files.
        """
        slot = _slot_size(len(data))
        if self._free[slot]:
            offset = self._free[slot].pop()
        else:
            offset, self._end = self._end, self._end + slot
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._file.seek(offset)
            written = 0
            while written < len(data):
                written += self._file.write(memoryview(data)[written:])
        except OSError as error:
            raise RunFailed(
                f"cannot write what clients keep to a temporary file in {tempfile.gettempdir()}: "
                f"{error.strerror}; free space there, set TMPDIR to another folder or raise "
                "engine.state_memory, then run again with --resume"
            ) from error
        return Place(offset, len(data))

    def read(self, place: Place) -> bytes:
        """Return the bytes at a place."""
        assert self._file is not None
        self._file.seek(place.offset)
        data = bytearray()
        while len(data) < place.size:
            data += self._file.read(place.size - len(data))
        return bytes(data)

    def free(self, place: Place) -> None:
        """Let later bytes use a place."""
        self._free[_slot_size(place.size)].append(place.offset)

    def close(self) -> None:
        """Delete the file and forget all places."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._end = 0
        self._free.clear()


def _slot_size(size: int) -> int:
    """Return the bytes of the slot for data of a size.

    Slots are a little larger than their data, so that a client's next state, which is about as large, fits as well.
    """
    step = max(SMALLEST, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step
