"""The runs of a folder as the board lists them; what cannot change any more is read once."""

import hashlib
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedssl.core.errors import InputError
from fedssl.core.text import one_line
from fedssl.core.toml import read_toml, settings_as_text
from fedssl.experiment.effects import WITHOUT_EFFECT
from fedssl.record.overview import Overview, State, overview
from fedssl.record.run_path import EXPERIMENT, check_folder_of_runs, run_folders
from fedssl.views.comparison.labels import Settings, bare, differing, short_keys

ID_LENGTH = 20
"""Number of hexadecimal digits of a run's id."""

SHOWN_APART = ("name", "seed")
"""Settings that have a place of their own on the board."""

LONGEST_VALUE = 60
"""A longer value of a setting is cut, and ends in an ellipsis."""


@dataclass(frozen=True)
class Entry:
    """A run on the board.

    Args:
        id: Name of the run in addresses; it follows from the run's place in the folder.
        place: Path of the run below the board's folder, as people read it.
        run: The run at a glance.
        settings: Settings of the run that can change a result, but for its name and its seed.
    """

    id: str
    place: str
    run: Overview
    settings: Settings


class Catalog:
    """List the runs below a folder, again and again.

    Links that lead out of the folder are not followed: neither linked folders nor runs with linked files are listed.

    Args:
        folder: The folder.

    Raises:
        InputError: There is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        check_folder_of_runs(folder)
        self.folder = folder
        self._root = folder.resolve()
        self._ended: dict[Path, tuple[int, Entry]] = {}
        self._settings: dict[Path, tuple[int, Settings]] = {}
        self._named: tuple[Sequence[Settings], Mapping[str, str]] = ((), {})
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """Return the runs that are there at this moment."""
        with self._lock:
            found = [self._entry(path) for path in run_folders(self._root)]
        return [entry for entry in found if entry is not None]

    def find(self, ids: Sequence[str]) -> list[Entry]:
        """Return the runs with some ids, in the order of the ids.

        Raises:
            InputError: A run is not there, or not there any more.
        """
        by_id = {entry.id: entry for entry in self.entries()}
        if any(id not in by_id for id in ids):
            raise InputError("the run", "is not in the folder any more", "reload the page")
        return [by_id[id] for id in ids]

    def as_table(self) -> dict[str, Any]:
        """Return the folder and its runs for JSON, each with its settings that differ among the runs, under short names."""
        entries = self.entries()
        every = [entry.settings for entry in entries]
        with self._lock:
            if every != self._named[0]:
                self._named = every, _headings(differing(every))
            names = self._named[1]
        return {
            "folder": one_line(str(self.folder)),
            "runs": [_as_row(entry, names) for entry in entries],
        }

    def _entry(self, path: Path) -> Entry | None:
        """Return the run in a folder; None if it is gone, or one of its files is a link that leads out of the folder."""
        try:
            changed = path.stat().st_mtime_ns
            kept = self._ended.get(path)
            if kept is not None and kept[0] == changed:
                return kept[1]
            if self._leads_out(path):
                return None
            run = overview(path)
            entry = Entry(self._id(path), self._place(path), run, self._settings_of(path, changed))
        except OSError:  # the run was removed meanwhile
            return None
        if run.state == State.finished:
            self._ended[path] = changed, entry
        return entry

    def _leads_out(self, path: Path) -> bool:
        with os.scandir(path) as found:
            links = [Path(entry.path) for entry in found if entry.is_symlink()]
        return any(not link.resolve().is_relative_to(self._root) for link in links)

    def _settings_of(self, path: Path, changed: int) -> Settings:
        kept = self._settings.get(path)
        if kept is None or kept[0] != changed:
            kept = self._settings[path] = changed, _read_settings(path)
        return kept[1]

    def _id(self, path: Path) -> str:
        place = os.fsencode(path.relative_to(self._root))
        return hashlib.sha256(place).hexdigest()[:ID_LENGTH]

    def _place(self, path: Path) -> str:
        return one_line(str(path.relative_to(self._root)))


def _read_settings(path: Path) -> Settings:
    """Return the settings of a run that can change a result; none if its experiment file cannot be read."""
    if not (path / EXPERIMENT).is_file():
        return {}
    try:
        table = read_toml(path / EXPERIMENT)
        apart = (*WITHOUT_EFFECT, *SHOWN_APART)
        return settings_as_text({k: v for k, v in table.items() if k not in apart})
    except (InputError, TypeError, ValueError, RecursionError):  # TOML has dates, and JSON has none
        return {}


def _headings(keys: Sequence[str]) -> dict[str, str]:
    """Return the heading of each setting: its short name, or the section of a kind; those of the method, which tell most, come first."""
    keys = sorted(keys, key=lambda key: not key.startswith("method."))
    section = {key: key.rpartition(".")[0].rpartition(".")[2] or key for key in keys}
    return {key: name or section[key] for key, name in short_keys(keys).items()}


def _as_row(entry: Entry, names: Mapping[str, str]) -> dict[str, Any]:
    run = entry.run
    return {
        "id": entry.id,
        "place": entry.place,
        "name": one_line(run.name),
        "method": one_line(run.method),
        "seed": run.seed,
        "state": run.state,
        "note": one_line(run.note),
        "rounds": run.rounds,
        "num_rounds": run.num_rounds,
        "accuracy": _known(run.accuracy),
        "seconds": _known(run.seconds),
        "began": _known(run.began),
        "tags": [one_line(tag) for tag in run.tags],
        "settings": [
            [short, _cut(one_line(bare(entry.settings[key])))]
            for key, short in names.items()
            if key in entry.settings
        ],
    }


def _cut(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 1]}…"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
