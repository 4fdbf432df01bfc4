"""The parts of the cohort's tree that a round still has to run; they are cut finer after a worker was lost."""

from collections import Counter
from collections.abc import Iterable

from fedssl.exchange.sums import Span, parts, without

CALL_SECONDS = 0.015
"""A call to a worker should carry at least this many seconds of work, about ten times the cost of the call itself."""

MOST_CALLS = 8
"""A cohort is cut into at most this many parts for each worker.

They are enough to balance the load, and few enough that their sums do not add up in memory.
"""


def num_parts(num_units: int, num_workers: int, unit_seconds: float | None) -> int:
    """Return into how many parts to cut a cohort.

    Args:
        num_units: Units of the cohort.
        num_workers: Workers that share the cohort.
        unit_seconds: Seconds that a unit has taken so far; None if no unit has run yet.
    """
    if unit_seconds is None:
        return num_workers
    worth = int(num_units * unit_seconds / CALL_SECONDS)
    return max(num_workers, min(worth, num_workers * MOST_CALLS))


class Backlog:
    """The units that no worker has finished, as nodes of the tree in which they are summed.

    After a worker was lost, every unit of its node runs again by itself. This finds the unit that loses workers, and
    the other units lose nothing.

    Args:
        num_units: Units of the cohort.
        count: Number of parts to begin with.
        retries: How often a unit is tried again.
    """

    def __init__(self, num_units: int, count: int, retries: int) -> None:
        self._retries = retries
        self._failed: Counter[int] = Counter()
        whole = parts((0, num_units), count) if num_units else []
        # `take` takes the last part: the longest, and among equals the earliest, whose clients take longest.
        self._waiting = sorted(whole, key=lambda span: (span[1] - span[0], -span[0]))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Span:
        """Remove and return the part to run next."""
        return self._waiting.pop()

    def drop(self) -> list[int]:
        """Remove and return all waiting units."""
        dropped = [unit for span in self._waiting for unit in range(*span)]
        self._waiting.clear()
        return dropped

    def lost(self, span: Span, culprit: int | None) -> list[int]:
        """Take back a part whose worker was lost; return the units that will not be tried again.

        Args:
            span: The part.
            culprit: The unit that is to blame; None if it is not known.
        """
        if culprit is None and span[1] - span[0] > 1:
            self._wait_for((unit, unit + 1) for unit in range(*span))
            return []
        unit = span[0] if culprit is None else culprit
        self._wait_for(without(span, unit))
        self._failed[unit] += 1
        if self._failed[unit] > self._retries:
            return [unit]
        self._wait_for([(unit, unit + 1)])
        return []

    def _wait_for(self, spans: Iterable[Span]) -> None:
        self._waiting += reversed(list(spans))
