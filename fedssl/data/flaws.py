"""Flaws of a user's images: they are counted and named, and then refused or left out."""

import re
from collections.abc import Iterable

from fedssl.core.errors import InputError
from fedssl.core.text import one_line

MOST_NAMED = 3
"""A note names at most this many images, files or classes."""

MOST_TEXT = 200
"""Texts of other libraries and names of files are cut to this many characters."""

MOST_FLAWS = 3
"""If there are so many flaws for one image without a flaw, they are too many to go on without the flawed images."""

NO_TRAINING_IMAGES = "classes without training images"

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
        self._num_flaws = 0
        self._flaws: set[str] = set()
        self._told: dict[str, int] = {}
        self._advice: dict[str, str] = {}
        self.passing: list[str] = []
        """Paths of images that cannot be read for a reason that may pass, such as a missing permission."""
        self._remarks: list[str] = []

    def add(self, flaw: str, names: Iterable[str]) -> None:
        """Note a flaw of some images or classes.

        Args:
            flaw: A phrase in the plural, such as ``"images cannot be read"``.
            names: Names of the flawed files, rows or classes.
        """
        count = self._count(flaw, names)
        self._num_flaws += count
        if count:
            self._flaws.add(flaw)

    def leave_out(self, what: str, names: Iterable[str]) -> None:
        """Note something that is left out and is no flaw, such as a text file beside the images; it is never refused.

        Args:
            what: A phrase in the plural, such as ``"files are hidden"``.
            names: Names of the files or arrays that are left out.
        """
        self._count(what, names)

    def remark(self, *sentences: str) -> None:
        """Note sentences about how the data was read; what is left out is not among them."""
        self._remarks += sentences

    def tell(self, what: str) -> None:
        """Note that something was done to one more image; `remarks` says it once, with the number of images."""
        self._told[what] = self._told.get(what, 0) + 1

    def advise(self, flaw: str, advice: str) -> None:
        """Note what a user should know who has a flaw; the error says it if there is this flaw."""
        self._advice[flaw] = advice

    @property
    def remarks(self) -> list[str]:
        """Sentences about how the data was read; what is left out is not among them."""
        told = [f"{count:,} {what}" for what, count in self._told.items()]
        return self._remarks + [_to_singular(each) if each[:2] == "1 " else each for each in told]

    def _count(self, what: str, names: Iterable[str]) -> int:
        """Count names and keep the first `MOST_NAMED`; return how many names there were."""
        before = self._counts.get(what, 0)
        for name in names:
            named = self._found.setdefault(what, [])
            self._counts[what] = self._counts.get(what, 0) + 1
            if len(named) < MOST_NAMED:
                named.append(plain_text(name))
        return self._counts.get(what, 0) - before

    @property
    def refused(self) -> bool:
        """Whether there is any flaw; things that are only left out are no flaws."""
        return self._num_flaws > 0

    def notes(self) -> tuple[str, ...]:
        """Return one line for each kind of flaw and of thing left out: its number, and the first names."""
        return self._lines(self._counts)

    def _lines(self, kinds: Iterable[str]) -> tuple[str, ...]:
        lines = []
        for flaw in kinds:
            count = self._counts[flaw]
            named = ", ".join(self._found[flaw]) + (", ..." if count > MOST_NAMED else "")
            said = flaw if count > 1 else _to_singular(flaw)
            lines.append(f"{count:,} {said} ({named})")
        return tuple(lines)

    def refuse(self, what: str, num_good: int) -> None:
        """Raise `InputError` if there are flaws.

        Args:
            what: Name of the data, as the user wrote it.
            num_good: Number of images without a flaw. If `MOST_FLAWS` times as many have one, the message does not offer to go
                on without them.

        Raises:
            InputError: There are flaws; the message has all of them and what to do, and then what is left out anyway.
        """
        if not self.refused:
            return
        if self._num_flaws < MOST_FLAWS * num_good:
            remedy = f"mend this, or set {self._switch} to go on without them"
        else:
            remedy = f"mend this ({self._switch} would leave out most of the images)"
        advice = [advice for flaw, advice in self._advice.items() if flaw in self._counts]
        problem = f"{what}: {'; '.join(self._lines(k for k in self._counts if k in self._flaws))}"
        harmless = self._lines(kind for kind in self._counts if kind not in self._flaws)
        also = [f"left out anyway, and no fault: {'; '.join(harmless)}"] if harmless else []
        raise InputError("data.source", problem, "; ".join([remedy, *advice, *also]))


def _to_singular(flaw: str) -> str:
    """Return a flaw with its subject and the first verb after it in the singular."""
    flaw = re.sub(
        r"^((?:1 )?(?:test |color )?)(image|class|folder|file|frame|array|split|link|table)(?:es|s)",
        r"\1\2",
        flaw,
    )
    return re.sub(r" (have|are|lie|lead) ", lambda verb: VERBS[verb[1]], flaw, count=1)
