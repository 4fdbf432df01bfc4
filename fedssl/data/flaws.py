"""What is wrong with a user's images: counted, named, and refused or left out."""

import re
from collections.abc import Iterable

from fedssl.core.errors import InputError
from fedssl.core.text import one_line

MOST_NAMED = 3
"""A note names at most so many examples."""

MOST_TEXT = 200
"""A text that other libraries wrote, or a file's name, is cut at so many characters."""

VERBS = {"have": " has ", "are": " is ", "lie": " lies ", "lead": " leads "}


def plain_text(text: str) -> str:
    """Return a text on one line without control characters, cut at `MOST_TEXT` characters."""
    shown = one_line(text)
    return shown if len(shown) <= MOST_TEXT else f"{shown[:MOST_TEXT]}..."


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
        self._refused = False
        self.passing: list[str] = []
        """Paths of images that could not be read for a reason that may pass, such as a missing permission."""
        self.remarks: list[str] = []
        """Sentences about how the data was read; they say nothing that is left out."""

    def add(self, flaw: str, names: Iterable[str]) -> None:
        """Note a flaw of some images or classes.

        Args:
            flaw: What is wrong, in the plural, e.g. ``"images cannot be read"``.
            names: Files, rows or classes.
        """
        self._refused |= self._count(flaw, names)

    def leave_out(self, what: str, names: Iterable[str]) -> None:
        """Note something that is left out and is no flaw, such as a text file beside the images: it is never refused.

        Args:
            what: What it is, in the plural, e.g. ``"files are hidden"``.
            names: Files or arrays.
        """
        self._count(what, names)

    def _count(self, what: str, names: Iterable[str]) -> bool:
        """Count and keep the first names; say whether there was any."""
        before = self._counts.get(what, 0)
        for name in names:
            named = self._found.setdefault(what, [])
            self._counts[what] = self._counts.get(what, 0) + 1
            if len(named) < MOST_NAMED:
                named.append(plain_text(name))
        return self._counts.get(what, 0) > before

    @property
    def refused(self) -> bool:
        """Whether there is any flaw; what is only left out is none."""
        return self._refused

    def notes(self) -> tuple[str, ...]:
        """Return one line for each kind of flaw, and of what is left out: how many, and the first of them."""
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
        if self._refused:
            raise InputError(
                "data.source",
                f"{what}: {'; '.join(self.notes())}",
                f"mend this, or set {self._switch} to go on without them",
            )


def _of_one(flaw: str) -> str:
    """Return a flaw in the singular: its subject and the first verb after it."""
    flaw = re.sub(
        r"^((?:test )?)(image|class|folder|file|array|split|link|table)(?:es|s)", r"\1\2", flaw
    )
    return re.sub(r" (have|are|lie|lead) ", lambda verb: VERBS[verb[1]], flaw, count=1)
