"""Bytes that do not fit into memory, in one temporary file without a name."""

import tempfile
from collections import defaultdict
from typing import BinaryIO, NamedTuple

from fedssl.core.errors import RunFailed

SMALLEST = 4096
"""Bytes of the smallest slot."""


class Place(NamedTuple):
    """Where something was written."""

    offset: int
    size: int


class Spill:
    """A file of slots that are used again; nothing of it is left however the process ends, for it has no name.

    It lies where the system keeps temporary files, which the environment variable ``TMPDIR`` moves.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._end = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    def write(self, data: bytes) -> Place:
        """Write bytes and return where they are.

        Raises:
            RunFailed: There is no room, or no folder for temporary files.
        """
        slot = _slot(len(data))
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
        """Let others use a place."""
        self._free[_slot(place.size)].append(place.offset)

    def close(self) -> None:
        """Forget everything."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._end = 0
        self._free.clear()


def _slot(size: int) -> int:
    """Return the bytes set aside for so many: a client's next state, about as large as its last, fits where that was."""
    step = max(SMALLEST, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step
