"""A terminal that shows what is written to it, as a person sees it, so that tests can look at live screens."""

import io
import re

from fedssl.core.console import Console

CODE = re.compile(r"\x1b\[(\?)?([0-9;]*)([A-Za-z])")


class Terminal(io.StringIO):
    """Keep the lines that a terminal of some size shows; it knows the codes that rich writes.

    Args:
        width: Characters of a line. A longer line goes on in the next one.
        height: Lines on the screen. Lines above them cannot be reached.
    """

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.width = width
        self.height = height
        self.lines = [""]
        self.row = self.column = 0

    def console(self) -> Console:
        """Return a console that writes here."""
        return Console(file=self, force_terminal=True, width=self.width, height=self.height)

    def isatty(self) -> bool:
        """Say that this is a terminal."""
        return True

    def write(self, text: str) -> int:
        """Show a text."""
        at = 0
        while at < len(text):
            code = CODE.match(text, at)
            if code is not None:
                self._obey(code)
                at = code.end()
            else:
                self._put(text[at])
                at += 1
        return len(text)

    def _obey(self, code: re.Match[str]) -> None:
        private, number, letter = code.groups()
        if letter == "A":
            top = max(0, len(self.lines) - self.height)
            self.row = max(top, self.row - int(number or 1))
        elif letter == "K":
            assert number == "2", code[0]
            self.lines[self.row] = ""
        else:
            assert letter == "m" or private, f"unknown code {code[0]!r}"

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
            return
        if character == "\n" or self.column == self.width:
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.lines):
                self.lines.append("")
            if character == "\n":
                return
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    @property
    def shown(self) -> list[str]:
        """The lines on the screen, without spaces at their ends and without empty lines at the end."""
        lines = [line.rstrip() for line in self.lines[-self.height :]]
        while lines and not lines[-1]:
            lines.pop()
        return lines
