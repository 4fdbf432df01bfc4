"""Turns runs on disk into the lines of a comparison: a line is an experiment, and its runs are the seeds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedssl.core.errors import InputError
from fedssl.core.toml import settings_as_text
from fedssl.record.resume import settings_that_change_results
from fedssl.record.run_path import (
    EVENTS,
    SWEEP,
    check_folder_of_runs,
    has_begun,
    run_folders,
    way_on,
)
from fedssl.views.comparison.labels import Settings, label_lines
from fedssl.views.run import Run


@dataclass(frozen=True)
class Line:
    """The runs of one experiment that differ only in their seeds.

    Args:
        label: Name of the line in tables and charts.
        settings: The runs' common settings that can change a result: dotted name to value as JSON text.
        runs: One run per seed, in the order in which the runs were found.
    """

    label: str
    settings: Settings
    runs: Mapping[int, Run]


@dataclass(frozen=True)
class Gathered:
    """The lines to compare, and notes on the runs that were left out.

    Args:
        lines: The lines; the first line is the baseline.
        notes: One sentence for each reason why runs were left out.
    """

    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def gather(paths: Sequence[Path]) -> Gathered:
    """Find runs, and group the runs that are seeds of one line.

    Args:
        paths: Run directories, and folders that hold run directories at any depth. A run named twice counts once.

    Raises:
        InputError: A folder does not exist or holds no finished run, or a run directory in `paths` is not finished.
    """
    runs: dict[Path, Run] = {}
    unfinished: dict[Path, Run] = {}
    for path in paths:
        for run in _found(path):
            kept = runs if run.is_finished else unfinished
            kept.setdefault(run.path.resolve(), run)
    notes = [_named("left out because they are not finished", unfinished.values())]
    lines, older = _lines(list(runs.values()))
    notes.append(_named("left out because newer runs have the same settings and seed", older))
    return Gathered(lines, tuple(note for note in notes if note))


def _found(path: Path) -> list[Run]:
    """Return the run at a path, or all runs below the path, ordered by name unless a sweep gives an order."""
    if has_begun(path):
        run = Run(path)
        _ = run.summary  # raises if the run is not finished
        return [run]
    check_folder_of_runs(path)
    runs = [Run(folder) for folder in _in_a_sweeps_order(path, list(run_folders(path)))]
    if not any(run.is_finished for run in runs):
        remedy = way_on(runs[0].path, "its end") if len(runs) == 1 else ""
        raise InputError(str(path), "holds no finished run", remedy)
    return runs


def _in_a_sweeps_order(path: Path, folders: Sequence[Path]) -> Sequence[Path]:
    """Return run directories in the order of the sweep that made the folder; its first run is the baseline.

    If the folder was not made by a sweep, the order does not change.
    """
    try:
        asked = json.loads((path / SWEEP).read_text(encoding="utf-8"))["runs"]
        order = {path / run["folder"]: place for place, run in enumerate(asked)}
    except (OSError, ValueError, KeyError, TypeError):
        return folders
    return sorted(folders, key=lambda folder: order.get(folder, len(order)))


def _lines(runs: Sequence[Run]) -> tuple[tuple[Line, ...], list[Run]]:
    """Return the runs grouped into lines, and the runs that newer runs with the same settings and seed replace."""
    groups: dict[frozenset[tuple[str, str]], tuple[Settings, list[Run]]] = {}
    for run in runs:
        own = settings_as_text(settings_that_change_results(run.experiment))
        del own["seed"]
        groups.setdefault(frozenset(own.items()), (own, []))[1].append(run)
    labels = label_lines([settings for settings, _ in groups.values()])
    lines, older = [], []
    for label, (settings, alike) in zip(labels, groups.values(), strict=True):
        newest = _newest(alike)
        lines.append(Line(label, settings, newest))
        older += [run for run in alike if run not in newest.values()]
    return tuple(lines), older


def _newest(runs: Sequence[Run]) -> dict[int, Run]:
    """Return the run of each seed; of several runs of a seed, the run that ended last."""
    by_seed: dict[int, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.experiment.seed, []).append(run)
    return {
        seed: alike[0] if len(alike) == 1 else max(alike, key=_ended)
        for seed, alike in by_seed.items()
    }


def _ended(run: Run) -> str:
    """Return when a run ended, as its record says; file times would change when a run is copied."""
    last = (run.path / EVENTS).read_text(encoding="utf-8").splitlines()[-1]
    time: str = json.loads(last)["time"]
    return time


def _named(what: str, runs: Iterable[Run]) -> str:
    paths = ", ".join(str(run.path) for run in runs)
    return f"{what}: {paths}" if paths else ""
