"""Clients that come and go by a timetable, such as a trace of real devices."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl.core.errors import InputError, RunFailed
from fedssl.experiment.system.availability.base import Availability, Mask
from fedssl.experiment.system.csv_file import Columns, read_columns


class Schedule(Availability):
    """Make a client available from the ``start`` of each of its lines until just before the line's ``end``.

    The file's first line names its columns, ``client,start,end``; times are virtual seconds. A client may have several
    lines; a client without lines is never available. With a `period` the timetable repeats. Then every ``start`` is
    less than the period, and an interval that crosses the end of the period has an ``end`` beyond it: with a period of
    86400, the interval from 22:00 to 6:00 is 79200 to 108000.
    """

    path: Path = Field(description="CSV file with the columns client, start and end")
    period: float | None = Field(
        None,
        gt=0,
        description="virtual seconds after which the timetable repeats; unset: it does not repeat",
    )

    def available(
        self, now: float, server_round: int, attempt: int, num_clients: int, seed: int
    ) -> Mask:
        """Return which clients are available at `now`, in any round and attempt; see `Availability.available`.

        Raises:
            InputError: The file cannot be read, lacks a column, or has an impossible interval.
        """
        clients, starts, ends = self._intervals(num_clients)
        there = np.zeros(num_clients, dtype=np.bool_)
        for origin in self._relevant_period_starts(now):
            there[clients[(origin + starts <= now) & (now < origin + ends)]] = True
        return there

    def next_change(self, now: float, num_clients: int) -> float:
        """Return the next start of any interval; see `Availability.next_change`.

        Raises:
            InputError: As in `available`.
            RunFailed: No interval of these clients starts after `now`.
        """
        _, starts, _ = self._intervals(num_clients)
        for origin in self._relevant_period_starts(now):
            later = (origin + starts)[origin + starts > now]
            if len(later):
                return float(later.min())
        again = "" if self.period else "; set period to repeat the timetable"
        raise RunFailed(f"no client is ever available again after {now:.0f} s ({self.path}){again}")

    def _relevant_period_starts(self, now: float) -> Iterator[float]:
        """Yield the start, in seconds, of every period whose intervals could matter at `now`, in order.

        Intervals of the previous period reach into the current period. The current and the next period matter too, and
        one more period in case rounding puts `now` just below a multiple of the period.
        """
        if self.period is None:
            yield 0.0
            return
        this = now // self.period
        for number in range(-1, 3):
            yield (this + number) * self.period

    def _intervals(
        self, num_clients: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return client, start and end of the intervals of clients 0 to K-1, (n,) each."""
        table = read_columns(self.path, ("start", "end"))
        starts, ends = table.numbers["start"], table.numbers["end"]
        self._refuse(table, starts < 0, "start is below 0", "virtual time begins at 0")
        self._refuse(table, ends <= starts, "end is not after start")
        if self.period is not None:
            each = f"the period of {self.period:g} s"
            self._refuse(table, starts >= self.period, f"start is not within {each}")
            self._refuse(table, ends > starts + self.period, f"its interval is longer than {each}")
        known = table.clients < num_clients
        return table.clients[known], starts[known], ends[known]

    def _refuse(self, table: Columns, wrong: Mask, problem: str, remedy: str = "") -> None:
        if wrong.any():
            line = table.lines[wrong.argmax()]
            raise InputError(f"{self.path}, line {line}", problem, remedy)
