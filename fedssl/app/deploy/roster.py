"""The clients that a deployment has registered: their names, Flower's node ids, and the numbers bound to them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedssl.core.errors import InputError

ROSTER = "registered.json"
"""The name of a deployment's file of registered clients."""


@dataclass(frozen=True)
class Registered:
    """A registered client.

    Args:
        node: Flower's id of the client's node. A node keeps its id as long as its key is registered (flwr 1.41).
        number: The client's number in the federation; None: the client may use any number that is bound to no client.
    """

    node: str
    number: int | None


class Roster:
    """The registered clients by name, in a file.

    Args:
        file: The JSON file; it need not exist yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, Registered]:
        """Return the registered clients by name.

        Raises:
            InputError: The file cannot be read, or holds something else.
        """
        try:
            table = json.loads(self._file.read_text())
            return {name: Registered(**entry) for name, entry in table.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError("--folder", f"{self._file} cannot be read: {error}") from None

    def add(self, name: str, registered: Registered) -> None:
        """Add a client, or replace its entry."""
        self._write({**self.read(), name: registered})

    def remove(self, name: str) -> None:
        """Remove a client; do nothing if there is no such client."""
        self._write({other: entry for other, entry in self.read().items() if other != name})

    def _write(self, table: Mapping[str, Registered]) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps({n: asdict(entry) for n, entry in table.items()}, indent=1))
        beside.replace(self._file)

    def owner_of(self, number: int | None) -> str:
        """Return the name of the client to which a number is bound; empty if there is none."""
        if number is None:
            return ""
        return next((name for name, entry in self.read().items() if entry.number == number), "")

    def falsehood(self, name: str, claim: int) -> str:
        """Say what is false if a client says that it has a number; empty if the client may have this number."""
        entry = self.read().get(name)
        if entry is not None and entry.number is not None:
            return "" if entry.number == claim else f"is bound to the number {entry.number}"
        return (
            "may not have this number, which is bound to another key"
            if self.owner_of(claim)
            else ""
        )

    def numbers(self) -> Mapping[str, int]:
        """Return the bound numbers by the ids of their nodes."""
        return {e.node: e.number for e in self.read().values() if e.number is not None}

    def name_of(self, node: str) -> str:
        """Return the name of a node's client; empty if `fedssl deploy` did not register the client."""
        return next((name for name, entry in self.read().items() if entry.node == node), "")
