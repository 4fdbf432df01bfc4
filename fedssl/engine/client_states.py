"""What clients keep between rounds: it is staged during a round and kept after the round, in memory or in a file."""

from collections import OrderedDict
from collections.abc import Mapping

from fedssl.core.machine import MB
from fedssl.engine.spill import Place, Spill
from fedssl.record.snapshot import KeptStates


class _Entry:
    """The bytes that one client keeps, or their place in the file."""

    __slots__ = ("data", "place", "version")

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data
        self.place = Place(0, len(data))
        self.version = 0


class ClientStates:
    """What each client keeps, serialized, by the client's number; a client that keeps nothing costs nothing.

    A round stages bytes. `commit` makes the staged bytes the ones that checkpoints see; `discard` forgets them. `get`
    returns staged bytes first, so that a grid finds what a client left in its last message under any strategy.

    Args:
        memory: Bytes, staged or kept, to hold in memory. Beyond them, the states that were not used for the longest
            time go to a temporary file.
    """

    outlive_run = True

    def __init__(self, memory: int = 1024 * MB) -> None:
        self.memory = memory
        self._round = 0
        self._kept: dict[int, _Entry] = {}
        self._staged: dict[int, _Entry | None] = {}
        self._resident: OrderedDict[_Entry, None] = OrderedDict()
        self._resident_bytes = 0
        self._spill = Spill()

    @property
    def round(self) -> int:
        """The number of rounds that are over."""
        return self._round

    @property
    def to_snapshot(self) -> KeptStates:
        """What a checkpoint stores."""
        return self

    @property
    def resident_bytes(self) -> int:
        """The number of bytes held in memory."""
        return self._resident_bytes

    def get(self, client: int) -> bytes | None:
        """Return what a client keeps, staged or not; None if it keeps nothing."""
        entry = self._staged[client] if client in self._staged else self._kept.get(client)
        return None if entry is None else self._read(entry)

    def stage(self, client: int, state: bytes | None) -> None:
        """Stage what a client left in its context in the current round; None: the client keeps nothing."""
        if state is None and client not in self._kept and client not in self._staged:
            return
        self._drop(self._staged.get(client))
        self._staged[client] = None if state is None else self._hold(state)

    def revert(self, client: int) -> None:
        """Forget what was staged for a client whose reply was refused."""
        self._drop(self._staged.pop(client, None))

    def commit(self) -> None:
        """End the round and keep everything that was staged."""
        self._round += 1
        for client, entry in self._staged.items():
            self._drop(self._kept.pop(client, None))
            if entry is not None:
                entry.version = self._round
                self._kept[client] = entry
        self._staged.clear()

    def discard(self) -> None:
        """Forget everything that was staged in a round that did not end."""
        for entry in self._staged.values():
            self._drop(entry)
        self._staged.clear()

    def versions(self) -> Mapping[int, int]:
        """Return the last round that changed a client's bytes, for every client that keeps something."""
        return {client: entry.version for client, entry in self._kept.items()}

    def kept(self, client: int) -> bytes:
        """Return what a client kept when the last round ended, whatever is staged now."""
        return self._read(self._kept[client])

    def restore(self, round: int, states: KeptStates | None) -> None:
        """Begin after a round, with what clients kept at its end; None: they kept nothing."""
        self._round = round
        if states is None:
            return
        for client, version in states.versions().items():
            entry = self._hold(states.kept(client))
            entry.version = version
            self._kept[client] = entry

    def close(self) -> None:
        """Forget everything, and delete the temporary file."""
        self._kept.clear()
        self._staged.clear()
        self._resident.clear()
        self._resident_bytes = 0
        self._spill.close()

    def _hold(self, data: bytes) -> _Entry:
        entry = _Entry(data)
        self._resident[entry] = None
        self._resident_bytes += len(data)
        while self._resident_bytes > self.memory:
            oldest = next(iter(self._resident))
            assert oldest.data is not None
            oldest.place = self._spill.write(oldest.data)
            oldest.data = None
            del self._resident[oldest]
            self._resident_bytes -= oldest.place.size
        return entry

    def _read(self, entry: _Entry) -> bytes:
        if entry.data is None:
            return self._spill.read(entry.place)
        self._resident.move_to_end(entry)
        return entry.data

    def _drop(self, entry: _Entry | None) -> None:
        if entry is None:
            return
        if entry.data is None:
            self._spill.free(entry.place)
        else:
            del self._resident[entry]
            self._resident_bytes -= len(entry.data)
