"""The terminal to which every command and display writes.

A user's text is shown as plain text, never as markup, an emoji or a control sequence. A sign that the terminal's encoding
lacks has its ASCII form.
"""

import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from fedssl.core.text import encodable, printable

USUAL_WIDTH = 80
"""A terminal that claims a width of zero gets lines of this many characters."""

WORD = re.compile(r"\s*(\S+)")
"""A word of a line, with the spaces before it."""

MARKS = ("/,", "-_.=")
"""A long name or path is broken behind the first of these marks, and only what is still too long behind the others."""

log = logging.getLogger(__name__)


class Console(RichConsole):
    """Print like rich's console, but show names such as ``[red]:smile:`` as plain text and write out escape sequences.

    Args:
        stderr: Write to the standard error stream.
        quiet: Write nothing.
        **others: Further arguments of rich's console.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False, **others: Any) -> None:
        super().__init__(
            stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, **others
        )
        if self.width < 1:  # with COLUMNS=0 rich would show nothing
            self.width = USUAL_WIDTH

    def __exit__(self, *details: Any) -> None:
        """Write what was printed; if writing fails, log one warning and let the run go on."""
        try:
            super().__exit__(*details)
        except OSError as error:  # a full disk behind `> FILE`, or a terminal that was closed
            self.on_broken_pipe()
            log.warning("no more output is shown, because it cannot be written: %s", error.strerror)

    def on_broken_pipe(self) -> None:
        """Stop writing to a reader that has gone, such as ``head``, and let the run go on."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)

    def tell(self, text: str | Text, style: str = "") -> None:
        """Print a line: on a terminal it is broken between words only, in a file or a pipe not at all."""
        shown = self.render_str(text) if isinstance(text, str) else text
        if self.is_terminal:
            shown = _broken_between_words(shown, self.width)
        self.print(shown, style=style, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line beside the main output, dimmed."""
        self.tell(text, style="dim")

    def render_str(self, text: str, **others: Any) -> Text:
        """Return a text, ready to be shown: its control characters are written out, and the terminal has all its signs."""
        return super().render_str(encodable(printable(text), self.encoding), **others)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield the pieces of anything that can be shown; signs of rich's own, such as …, have their ASCII forms too."""
        for text, style, control in super().render(renderable, options):
            yield Segment(encodable(text, self.encoding), style, control)


def folded(text: str, width: int) -> str:
    """Return a text in lines of at most `width` places, which end behind marks such as a slash or a hyphen.

    A piece that is longer and has no marks is broken anywhere.

    Example:
        >>> folded("runs/digits-fixmatch/seed0", 12).splitlines()
        ['runs/', 'digits-', 'fixmatch/', 'seed0']
    """
    lines = [text]
    for marks in MARKS:
        lines = [piece for line in lines for piece in _packed(line, width, marks)]
    return "\n".join(piece for line in lines for piece in chop_cells(line, width))


def _packed(line: str, width: int, marks: str) -> list[str]:
    """Return the pieces of a line that end behind marks, as many in each line as have room."""
    lines = [""]
    for piece in pieces_of(line, marks) if cell_len(line) > width else [line]:
        if lines[-1] and cell_len(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece
    return lines


def pieces_of(text: str, marks: str = MARKS[0]) -> list[str]:
    """Return the pieces of a name or a path, each with the mark behind it."""
    return re.findall(f"[^{re.escape(marks)}]*[{re.escape(marks)}]|[^{re.escape(marks)}]+", text)


def _broken_between_words(text: Text, width: int) -> Text:
    """Return a text with line feeds in place of spaces, so that no word crosses the edge of a terminal.

    A word that is longer than a line, such as a path, stays whole, so that it can be copied.
    """
    lines: list[Text] = []
    for line in text.split("\n"):
        breaks, taken = [], 0
        for word in WORD.finditer(line.plain):
            if taken and taken + cell_len(word[0]) > width:
                breaks.append(word.start(1))
                taken = cell_len(word[1])
            else:
                taken += cell_len(word[0])
        lines += line.divide(breaks)
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)
