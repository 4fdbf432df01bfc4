"""Texts of users and clients made harmless: for a terminal, where they could move the cursor, and for a spreadsheet, where they could be formulas.

A file name, a class name or the error text of a client holds whatever somebody put into it.
"""

import re

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for tab and line feed, marks that turn the direction of writing, and halves of surrogate pairs."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that a spreadsheet may take for a formula."""

_BYTES = range(0xDC80, 0xDD00)
"""Characters by which Python keeps a byte of a file name that is no UTF-8 (PEP 383)."""


def printable(text: str) -> str:
    r"""Return a text in which control characters are written out, such as ``\x1b``; tabs and line feeds stay.

    A byte of a file name that is no UTF-8 is written as that byte: ``Fl\xfcgel``.
    """
    return text if text.isascii() and text.isprintable() else _UNPRINTABLE.sub(_written, text)


def one_line(text: str) -> str:
    r"""Return a printable text whose tabs and line feeds are written out too: ``\t``, ``\n``."""
    return printable(text).replace("\t", r"\t").replace("\n", r"\n")


def as_cell(text: str) -> str:
    """Return a text for a cell of a CSV file, with a leading ``'`` where a spreadsheet would take it for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def from_cell(cell: str) -> str:
    """Return the text that `as_cell` was given, as far as it is printable."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(_FORMULA) else cell


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code in _BYTES:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
