"""What is wrong with a user's images: counted, named, and refused or left out."""

import re
from collections.abc import Iterable

from fedssl.errors import InputError

MOST_NAMED = 3
"""Examples named of each flaw."""

VERBS = {"have": " has ", "are": " is ", "lie": " lies "}


class Flaws:
    """Flaws found while a data set is read.

    A reader adds what it meets and goes on without it; only at the end is it all refused, so that one message says
    everything there is to mend.

    Args:
        switch: What to set to go on without what is flawed.
    """

    def __init__(self, switch: str = "data.bad_images = 'skip'") -> None:
        self._switch = switch
        self._found: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, flaw: str, names: Iterable[str]) -> None:
        """Note a flaw of some images or classes.

        Args:
            flaw: What is wrong, in the plural, e.g. ``"images cannot be read"``.
            names: Files, rows or classes.
        """
        for name in names:
            named = self._found.setdefault(flaw, [])
            self._counts[flaw] = self._counts.get(flaw, 0) + 1
            if len(named) < MOST_NAMED:
                named.append(name)

    def notes(self) -> tuple[str, ...]:
        """Return one line a flaw: how many, and the first of them."""
        lines = []
        for flaw, count in self._counts.items():
            named = ", ".join(self._found[flaw]) + (", ..." if count > MOST_NAMED else "")
            said = flaw if count > 1 else _of_one(flaw)
            lines.append(f"{count:,} {said} ({named})")
        return tuple(lines)

    def refuse(self, what: str) -> None:
        """Raise `InputError` if there are any.

        Args:
            what: The data, as the user named it.
        """
        if self._counts:
            raise InputError(
                "data.source",
                f"{what}: {'; '.join(self.notes())}",
                f"mend this, or set {self._switch} to go on without them",
            )


def _of_one(flaw: str) -> str:
    """Return a flaw in the singular: its subject and the first verb after it."""
    flaw = re.sub(r"^((?:test )?)(image|class|folder)(?:es|s)", r"\1\2", flaw)
    return re.sub(r" (have|are|lie) ", lambda verb: VERBS[verb[1]], flaw, count=1)
