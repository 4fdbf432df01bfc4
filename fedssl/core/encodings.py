"""Files that a user wrote as text: read as UTF-8, or refused in plain words that say what they are."""

import codecs
from pathlib import Path

from fedssl.core.errors import InputError

AS_UTF_8 = "save it as UTF-8"

BINARY = {
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive or an .npz file",
    b"\x1f\x8b": "a compressed file (gzip)",
}
"""What a file is that begins so."""


def decode_text(path: Path, content: bytes) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Args:
        path: The file, which the error names.
        content: The bytes of the file, or its first ones.

    Raises:
        InputError: The file is no text, or its encoding is another one.
    """
    kind = next((kind for mark, kind in BINARY.items() if content.startswith(mark)), None)
    if kind is not None:
        raise InputError(str(path), f"is {kind} and no text", "check the path")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _is_every_other_0(content):
        raise InputError(str(path), "is saved as UTF-16", AS_UTF_8)
    if b"\0" in content:
        raise InputError(str(path), "is no text", "check the path")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        line = content.split(b"\n")[number - 1].decode("cp1252", "replace").strip()
        problem = f"is not saved as UTF-8: line {number}, which may read {line[:40]!r}"
        raise InputError(str(path), problem, AS_UTF_8) from None


def _is_every_other_0(content: bytes) -> bool:
    """Return whether a text of mostly English letters may be UTF-16 without a byte order mark: every second byte is 0."""
    return len(content) > 1 and any(
        content[start::2].count(0) > len(content) // 4 and 0 not in content[1 - start :: 2]
        for start in (0, 1)
    )
