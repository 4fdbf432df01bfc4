"""Tags: words that a user gives to a run, in a file of the run directory."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from fedssl.core.errors import InputError
from fedssl.core.files import write_atomically
from fedssl.core.text import one_line
from fedssl.record.run_path import TAGS

LONGEST_TAG = 40
"""A tag has at most this many characters."""

MOST_TAGS = 20
"""A run has at most this many tags."""


def read_tags(path: Path) -> tuple[str, ...]:
    """Return the tags of the run in a folder, sorted; a damaged file holds none."""
    if not (path / TAGS).is_file():
        return ()
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((path / TAGS).read_text(encoding="utf-8"))
        if isinstance(found, list):
            return tuple(sorted({tag for tag in found if isinstance(tag, str)}))
    return ()


def change_tags(path: Path, add: Iterable[str] = (), remove: Iterable[str] = ()) -> tuple[str, ...]:
    """Give tags to the run in a folder, take tags away, and return the tags that it has then.

    Args:
        path: The run directory.
        add, remove: Tags to add and to remove; one to add that is there, or to remove that is not, changes nothing.

    Raises:
        InputError: A tag to add is empty, too long or not printable, there are too many, or the folder cannot be written to.
    """
    before = set(read_tags(path))
    after = sorted((before | {_checked(tag) for tag in add}) - set(remove))
    if len(after) > MOST_TAGS:
        raise InputError("tag", f"{path} would have {len(after)} tags", f"use at most {MOST_TAGS}")
    try:
        if after:
            write_atomically(path / TAGS, (json.dumps(after, ensure_ascii=False) + "\n").encode())
        else:
            (path / TAGS).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(str(path), f"cannot be tagged: {error.strerror}") from None
    return tuple(after)


def _checked(tag: str) -> str:
    tag = tag.strip()
    if not tag or len(tag) > LONGEST_TAG or one_line(tag) != tag:
        problem = f"is {tag!r}" if len(tag) <= LONGEST_TAG else f"has {len(tag)} characters"
        raise InputError("tag", problem, f"use 1 to {LONGEST_TAG} printable characters")
    return tag
