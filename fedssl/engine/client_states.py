"""What clients keep between rounds: staged while a round runs, kept once it is over, in memory or in a file."""

from collections import OrderedDict
from collections.abc import Mapping

from fedssl.core.machine import MB
from fedssl.engine.spill import Place, Spill
from fedssl.record.snapshot import KeptStates


class _Entry:
    """One state: its bytes, or where they were put."""

    __slots__ = ("data", "place", "version")

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data
        self.place = Place(0, len(data))
        self.version = 0


class ClientStates:
    """Serialized state of clients by number; an empty one costs nothing.

    A round stages; `commit` makes what was staged the state that checkpoints see, `discard` forgets it. Reading sees
    what is staged, so that a grid driven by any strategy finds what a client left in its last message.

    Args:
        memory: Bytes of state to hold in memory, staged or kept; what was not used longest goes to a temporary file.
    """

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
        """Rounds that are over."""
        return self._round

    @property
    def to_snapshot(self) -> KeptStates:
        """What a checkpoint stores."""
        return self

    @property
    def resident_bytes(self) -> int:
        """Bytes of state in memory."""
        return self._resident_bytes

    def get(self, client: int) -> bytes | None:
        """Return what a client keeps; None if it keeps nothing."""
        entry = self._staged[client] if client in self._staged else self._kept.get(client)
        return None if entry is None else self._read(entry)

    def stage(self, client: int, state: bytes | None) -> None:
        """Take what a client left in its context in the round that runs."""
        if state is None and client not in self._kept and client not in self._staged:
            return
        self._drop(self._staged.get(client))
        self._staged[client] = None if state is None else self._hold(state)

    def revert(self, client: int) -> None:
        """Forget what a client staged: its reply was refused."""
        self._drop(self._staged.pop(client, None))

    def commit(self) -> None:
        """Keep what was staged: the round is over."""
        self._round += 1
        for client, entry in self._staged.items():
            self._drop(self._kept.pop(client, None))
            if entry is not None:
                entry.version = self._round
                self._kept[client] = entry
        self._staged.clear()

    def discard(self) -> None:
        """Forget what was staged: the round did not end."""
        for entry in self._staged.values():
            self._drop(entry)
        self._staged.clear()

    def versions(self) -> Mapping[int, int]:
        """Return, for every client that keeps something, the round that it kept it in."""
        return {client: entry.version for client, entry in self._kept.items()}

    def kept(self, client: int) -> bytes:
        """Return what a client keeps, without what is staged."""
        return self._read(self._kept[client])

    def restore(self, round: int, states: KeptStates | None) -> None:
        """Begin after a round, with what clients kept then; None: nothing."""
        self._round = round
        if states is None:
            return
        for client, version in states.versions().items():
            entry = self._hold(states.kept(client))
            entry.version = version
            self._kept[client] = entry

    def close(self) -> None:
        """Forget everything."""
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
