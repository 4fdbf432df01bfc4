"""Write durations as people say them."""

import math

UNITS = ((1, "s"), (60, "min"), (3600, "h"), (86400, "d"))
"""Length (seconds) and name of each unit, from the shortest to the longest."""


def brief_duration(seconds: float) -> str:
    """Return a duration in one unit, such as ``90 s``, ``12 min`` or ``3 h``; a dash for NaN.

    The unit is the longest one of which the duration has two or more.

    Example:
        >>> [brief_duration(seconds) for seconds in (0.42, 90, 720, 12240, 864000)]
        ['0.4 s', '90 s', '12 min', '3 h', '10 d']
    """
    if math.isnan(seconds):
        return "-"
    length, unit = next((each for each in reversed(UNITS) if seconds >= 2 * each[0]), UNITS[0])
    return f"{seconds / length:,.{1 if seconds < 2 else 0}f} {unit}"
