"""Flaws of a user's images: they are counted and named, and then refused or left out."""

import re
from collections.abc import Iterable

from fedssl.core.errors import InputError
from fedssl.core.text import one_line

MOST_NAMED = 3
"""A note names at most this many images, files or classes."""

MOST_TEXT = 200
"""Texts of other libraries and names of files are cut to this many characters."""

VERBS = {"have": " has ", "are": " is ", "lie": " lies ", "lead": " leads "}
"""Verbs of flaws in the plural, and the same verbs in the singular."""


def plain_text(text: str) -> str:
    """Return a text on one line without control characters, cut at `MOST_TEXT` characters."""
    shown = one_line(text)
    return shown if len(shown) <= MOST_TEXT else f"{shown[:MOST_TEXT]}..."


class Flaws:
    """Collects the flaws that are found while a data set is read.

    A reader adds a flaw and goes on without the flawed image. Flaws are refused only at the end, so that one message
    names everything that must be mended.

    Args:
        switch: Setting that leaves flawed images out, for the message.
    """

    def __init__(self, switch: str = "data.bad_images = 'skip'") -> None:
        self._switch = switch
        self._found: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._refused = False
        self.passing: list[str] = []
        """Paths of images that cannot be read for a reason that may pass, such as a missing permission."""
        self.remarks: list[str] = []
        """Sentences about how the data was read; what is left out is not among them."""

    def add(self, flaw: str, names: Iterable[str]) -> None:
        """Note a flaw of some images or classes.

        Args:
            flaw: A phrase in the plural, such as ``"images cannot be read"``.
            names: Names of the flawed files, rows or classes.
        """
        self._refused |= self._count(flaw, names)

    def leave_out(self, what: str, names: Iterable[str]) -> None:
        """Note something that is left out and is no flaw, such as a text file beside the images; it is never refused.

        Args:
            what: A phrase in the plural, such as ``"files are hidden"``.
            names: Names of the files or arrays that are left out.
        """
        self._count(what, names)

    def _count(self, what: str, names: Iterable[str]) -> bool:
        """Count names and keep the first `MOST_NAMED`; say whether there was any name."""
        before = self._counts.get(what, 0)
        for name in names:
            named = self._found.setdefault(what, [])
            self._counts[what] = self._counts.get(what, 0) + 1
            if len(named) < MOST_NAMED:
                named.append(plain_text(name))
        return self._counts.get(what, 0) > before

    @property
    def refused(self) -> bool:
        """Whether there is any flaw; things that are only left out are no flaws."""
        return self._refused

    def notes(self) -> tuple[str, ...]:
        """Return one line for each kind of flaw and of thing left out: its number, and the first names."""
        lines = []
        for flaw, count in self._counts.items():
            named = ", ".join(self._found[flaw]) + (", ..." if count > MOST_NAMED else "")
            said = flaw if count > 1 else _to_singular(flaw)
            lines.append(f"{count:,} {said} ({named})")
        return tuple(lines)

    def refuse(self, what: str) -> None:
        """Raise `InputError` if there are flaws.

        Args:
            what: Name of the data, as the user wrote it.

        Raises:
            InputError: There are flaws; the message has all notes.
        """
        if self._refused:
            raise InputError(
                "data.source",
                f"{what}: {'; '.join(self.notes())}",
                f"mend this, or set {self._switch} to go on without them",
            )


def _to_singular(flaw: str) -> str:
    """Return a flaw with its subject and the first verb after it in the singular."""
    flaw = re.sub(
        r"^((?:test )?)(image|class|folder|file|array|split|link|table)(?:es|s)", r"\1\2", flaw
    )
    return re.sub(r" (have|are|lie|lead) ", lambda verb: VERBS[verb[1]], flaw, count=1)
