"""What clients keep between rounds: staged while a round runs, kept once it is over."""


class ClientStates:
    """Serialized state of clients by number; an empty one costs nothing.

    A round stages; `commit` makes what was staged the state that snapshots see, `discard` forgets it. Reading sees
    what is staged, so that a grid driven by any strategy finds what a client left in its last message.
    """

    def __init__(self) -> None:
        self._kept: dict[int, bytes] = {}
        self._staged: dict[int, bytes | None] = {}

    def get(self, client: int) -> bytes | None:
        """Return what a client keeps; None if it keeps nothing."""
        return self._staged[client] if client in self._staged else self._kept.get(client)

    def stage(self, client: int, state: bytes | None) -> None:
        """Take what a client left in its context in the round that runs."""
        if state is not None or client in self._kept or client in self._staged:
            self._staged[client] = state

    def commit(self) -> None:
        """Keep what was staged: the round is over."""
        for client, state in self._staged.items():
            if state is None:
                self._kept.pop(client, None)
            else:
                self._kept[client] = state
        self._staged.clear()

    def discard(self) -> None:
        """Forget what was staged: the round did not end."""
        self._staged.clear()
