"""A tracker that fails at a chosen call, as if its server had gone away."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from fedssl.views.trackers.base import Facts, Status, TrackedRun, Tracker


class Gone(ConnectionError):
    pass


class BrokenTracker(Tracker):
    at: Literal["open", "log", "end"] = "open"

    def open(self, facts: Facts, id: str | None) -> TrackedRun:
        if self.at == "open":
            raise Gone("nobody is there")
        return _Run("1", self.at)


class _Run(TrackedRun):
    def __init__(self, id: str, at: str) -> None:
        super().__init__(id)
        self._at = at

    def log(self, round: int, values: Mapping[str, float]) -> None:
        if self._at == "log" and round >= 2:
            raise Gone("nobody is there")

    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        if self._at == "end":
            raise Gone("nobody is there")
