"""Numbers that a method, a strategy or the server records under names of its own."""

import re
from collections.abc import Iterable

MOST_NUMBERS = 32
"""One method, or one strategy, records at most this many numbers."""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,47}")
"""A number's name; it stands in files, in charts and in settings."""

CHOSEN = "number:"
"""Begins a setting that names such a number, as in ``strategy.weight = "number:certainty"``."""


def check_names(names: Iterable[str]) -> None:
    """Refuse names under which no number can be recorded.

    Raises:
        ValueError: A name is no name, or there are too many names.
    """
    found = list(names)
    if len(found) > MOST_NUMBERS:
        raise ValueError(f"{len(found)} numbers are recorded; at most {MOST_NUMBERS} can be")
    for name in found:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"a number cannot be called {name[:50]!r}; its name is a letter and up to 47 letters, digits or one of _.-"
            )
