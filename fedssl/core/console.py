"""The terminal as every command and display writes to it: a user's text is text, never markup, emoji or a control sequence."""

import logging
import os
from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

from fedssl.core.text import printable

USUAL_WIDTH = 80
"""Characters of a line where a terminal is said to have none."""

log = logging.getLogger(__name__)


class Console(RichConsole):
    """rich's console, to which the name ``[red]:smile:`` is plain text and which writes escape sequences out.

    Args:
        stderr: Write to the standard error stream.
        quiet: Write nothing.
        **others: As rich's.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False, **others: Any) -> None:
        super().__init__(
            stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, **others
        )
        if self.width < 1:  # COLUMNS=0, under which nothing would be shown
            self.width = USUAL_WIDTH

    def __exit__(self, *details: Any) -> None:
        """Write what was printed; where nothing can be written any more, say so once and go on."""
        try:
            super().__exit__(*details)
        except OSError as error:  # a full disk behind `> FILE`, or a terminal that was closed
            self.on_broken_pipe()
            log.warning("the output cannot be written and is not shown: %s", error.strerror)

    def on_broken_pipe(self) -> None:
        """Write nothing more to a reader that has gone, such as ``head``; the run goes on."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)

    def render_str(self, text: str, **others: Any) -> Text:
        """Return a text as it is shown."""
        return super().render_str(printable(text), **others)
