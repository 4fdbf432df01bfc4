"""What is still to be run in a round: parts of the cohort's tree, cut to size, cut finer where a worker was lost."""

from collections import Counter
from collections.abc import Iterable

from fedssl.exchange.sums import Span, parts, without

CALL_SECONDS = 0.015
"""Work that a call to a worker should carry at least: about ten times what the call itself costs."""

MOST_CALLS = 8
"""Calls a worker in a round, at most: enough to even out, and few enough for their sums not to add up in memory."""


def num_parts(num_units: int, num_workers: int, unit_seconds: float | None) -> int:
    """Return into how many parts a cohort is cut.

    Args:
        num_units: Units of the cohort.
        num_workers: Workers that share it.
        unit_seconds: What a unit has taken so far; None if nothing is known.
    """
    if unit_seconds is None:
        return num_workers
    worth = int(num_units * unit_seconds / CALL_SECONDS)
    return max(num_workers, min(worth, num_workers * MOST_CALLS))


class Backlog:
    """Units that nobody has finished, as nodes of the tree in which they are summed.

    A node that was lost with its worker is run again, every unit by itself, so that the one that loses workers is
    found and costs the others nothing.

    Args:
        num_units: Units of the cohort.
        count: Parts to begin with.
        retries: How often a unit is tried again.
    """

    def __init__(self, num_units: int, count: int, retries: int) -> None:
        self._retries = retries
        self._failed: Counter[int] = Counter()
        whole = parts((0, num_units), count) if num_units else []
        # The last is taken first: longest parts, and among them the first ones, whose clients take longest.
        self._waiting = sorted(whole, key=lambda span: (span[1] - span[0], -span[0]))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Span:
        """Return the part to run next."""
        return self._waiting.pop()

    def drop(self) -> list[int]:
        """Return all units that are waiting, and wait for them no longer."""
        dropped = [unit for span in self._waiting for unit in range(*span)]
        self._waiting.clear()
        return dropped

    def lost(self, span: Span, culprit: int | None) -> list[int]:
        """Take back a part whose worker was lost; return the units that have been tried often enough.

        Args:
            span: The part.
            culprit: Unit that is to blame, if that is known.
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
