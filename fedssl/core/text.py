"""Make texts harmless for terminals and spreadsheets.

A file name, a class name or a client's error text can hold anything. It could move the cursor of a terminal, and a
spreadsheet could take it for a formula. A terminal whose encoding lacks a sign gets the sign's ASCII form.
"""

import re

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters other than tab and line feed, marks that turn the direction of writing, and lone surrogates."""

_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*")
"""The head of a Python traceback and its indented lines."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet may take a cell that begins with one of these characters for a formula."""

_BYTES = range(0xDC80, 0xDD00)
"""Python stands these characters in for the bytes of a file name that are not UTF-8 (PEP 383)."""

SIGNS = {
    **{"±": "+-", "·": "-", "≥": ">=", "≤": "<=", "…": "~"},
    **dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True)),
}
"""What stands for a sign that fedssl prints, where an encoding such as ASCII or Latin-1 lacks the sign."""

UNKNOWN = "?"
"""Stands for any other character that an encoding lacks."""


def printable(text: str) -> str:
    r"""Return a text in which control characters are written out, such as ``\x1b``; tabs and line feeds stay.

    A byte of a file name that is not UTF-8 is written as that byte: ``Fl\xfcgel``.
    """
    return text if text.isascii() and text.isprintable() else _UNPRINTABLE.sub(_write_out, text)


def one_line(text: str) -> str:
    r"""Return a printable text whose tabs and line feeds are written out too: ``\t``, ``\n``."""
    return printable(text).replace("\t", r"\t").replace("\n", r"\n")


def last_line(reason: str) -> str:
    """Return the last line of a failure's reason; the last line of a traceback is the error."""
    lines = reason.strip().splitlines()
    return lines[-1] if lines else "no reason given"


def without_tracebacks(text: str) -> str:
    """Return a text without the indented lines of its tracebacks; the line of each error stays."""
    return _TRACEBACK.sub("", text)


def as_cell(text: str) -> str:
    """Return a text for a cell of a CSV file, with a leading ``'`` where a spreadsheet would take it for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def from_cell(cell: str) -> str:
    """Undo `as_cell`: return the text of a cell; its control characters stay written out."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(_FORMULA) else cell


def encodable(text: str, encoding: str) -> str:
    """Return a text that an encoding can hold: a sign that it lacks has its ASCII form, any other character is ``?``.

    Args:
        text: The text.
        encoding: Name of the encoding, as Python knows it.
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        if len(text) == 1:
            return SIGNS.get(text, UNKNOWN)
        return "".join(encodable(character, encoding) for character in text)
    return text


def _write_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code in _BYTES:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
