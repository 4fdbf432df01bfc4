"""The TensorBoard tracker: runs are written as event files."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fedssl.core.extras import require
from fedssl.core.toml import leaves
from fedssl.views.trackers.base import Facts, Status, TrackedRun, Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tracker):
    """Write event files that TensorBoard shows."""

    folder: str | None = Field(
        None,
        min_length=1,
        description="folder in which every run gets a folder NAME/ID of event files; unset: event files are in the "
        "run directory, under tensorboard",
    )

    def check(self) -> None:
        """Raise `InputError` if TensorBoard is not installed."""
        require("tensorboard", "tracker.kind", f"{self.kind!r}", self.kind)

    def open(self, facts: Facts, id: str | None) -> TrackedRun:
        """Write the settings, and return a run that writes event files; see `Tracker.open`."""
        from torch.utils.tensorboard import SummaryWriter

        own = facts.directory / "tensorboard"
        if self.folder is not None:
            own = Path(self.folder, facts.name, facts.directory.name).absolute()
        _wait_for_a_later_name(own)
        # A resumed run writes all its rounds again; `purge_step` hides the rounds of the earlier event files.
        writer = SummaryWriter(str(own), purge_step=None if id is None else 1)
        settings = {key: _plain(value) for key, value in leaves(facts.settings)}
        described = {**settings, **facts.tags, "run_directory": str(facts.directory)}
        writer.add_text("settings", _as_markdown(described), 0)
        return _Run(own.name, writer, settings)


class _Run(TrackedRun):
    def __init__(self, id: str, writer: "SummaryWriter", settings: Mapping[str, Any]) -> None:
        super().__init__(id)
        self._writer = writer
        self._settings = dict(settings)
        self._round = 0

    def log(self, round: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()  # every finished round of a killed run is readable
        self._round = round

    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        self._writer.add_text("status", status, self._round)
        if summary:
            self._writer.add_hparams(
                self._settings, dict(summary), run_name=".", global_step=self._round
            )
        self._writer.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until a new event file would get a later name than the files in the folder.

    TensorBoard reads event files in the order of the seconds in their names.
    """
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    while seconds and int(time.time()) <= max(seconds):
        time.sleep(0.05)


def _plain(value: Any) -> bool | int | float | str:
    """Return a setting as TensorBoard's table of hyper-parameters can hold it: everything else becomes JSON text."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _as_markdown(settings: Mapping[str, Any]) -> str:
    lines = [f"| {key} | {value} |" for key, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *lines])
