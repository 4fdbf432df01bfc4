"""Runs on disk become the lines of a comparison: a line is a name and its settings, its runs are the seeds."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedssl.core.errors import InputError
from fedssl.record.resume import decisive, texts
from fedssl.record.run_path import EVENTS, SWEEP, has_begun
from fedssl.views.comparison.labels import Settings, label_lines
from fedssl.views.run import Run


@dataclass(frozen=True)
class Line:
    """Runs that differ in nothing but their seeds.

    Args:
        label: What to call them.
        settings: What they share of what can change a result, by dotted name, each as JSON text.
        runs: One a seed, in the order they were found.
    """

    label: str
    settings: Settings
    runs: Mapping[int, Run]


@dataclass(frozen=True)
class Gathered:
    """What is compared, and what was left out.

    Args:
        lines: The first one is the baseline.
        notes: One sentence each.
    """

    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def gather(paths: Sequence[Path]) -> Gathered:
    """Find runs and put those together that are the seeds of one line.

    Args:
        paths: Run directories, and folders that hold some at any depth; a run that is named twice counts once.

    Raises:
        InputError: There is no such folder or no finished run in it; or a run that is named itself is not finished.
    """
    runs: dict[Path, Run] = {}
    unfinished: dict[Path, Run] = {}
    for path in paths:
        for run in _found(path):
            kept = runs if run.is_finished else unfinished
            kept.setdefault(run.path.resolve(), run)
    notes = [_named("left out, for they are not finished", unfinished.values())]
    lines, older = _lines(list(runs.values()))
    notes.append(_named("left out, for newer runs have the same settings and seed", older))
    return Gathered(lines, tuple(note for note in notes if note))


def _found(path: Path) -> list[Run]:
    """Return the run that a path is, or those below it by name."""
    if has_begun(path):
        run = Run(path)
        _ = run.summary  # refuses what is not finished
        return [run]
    if not path.is_dir():
        problem = "is no folder" if path.exists() else "no such folder"
        raise InputError(str(path), problem, "name run directories or folders of them")
    runs = [Run(folder) for folder in _in_a_sweeps_order(path, list(_run_folders(path)))]
    if not any(run.is_finished for run in runs):
        raise InputError(str(path), "holds no finished run")
    return runs


def _in_a_sweeps_order(path: Path, folders: Sequence[Path]) -> Sequence[Path]:
    """Return run directories as a sweep was asked for them, if a folder is one's: its first is what it compares with."""
    try:
        asked = json.loads((path / SWEEP).read_text(encoding="utf-8"))["runs"]
        order = {path / run["folder"]: place for place, run in enumerate(asked)}
    except (OSError, ValueError, KeyError, TypeError):
        return folders
    return sorted(folders, key=lambda folder: order.get(folder, len(order)))


def _run_folders(path: Path) -> Iterator[Path]:
    """Yield run directories below a folder, without looking into one."""
    for folder, below, _ in os.walk(path):
        if has_begun(Path(folder)):
            below.clear()
            yield Path(folder)
        below.sort()


def _lines(runs: Sequence[Run]) -> tuple[tuple[Line, ...], list[Run]]:
    """Return runs as lines, and those that newer ones stand in for."""
    groups: dict[frozenset[tuple[str, str]], tuple[Settings, list[Run]]] = {}
    for run in runs:
        own = texts(decisive(run.experiment))
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
    """Return the run of each seed that ended last."""
    by_seed: dict[int, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.experiment.seed, []).append(run)
    return {
        seed: alike[0] if len(alike) == 1 else max(alike, key=_ended)
        for seed, alike in by_seed.items()
    }


def _ended(run: Run) -> str:
    """Return when a run ended, as its record says: a copy's file times are those of copying."""
    last = (run.path / EVENTS).read_text(encoding="utf-8").splitlines()[-1]
    time: str = json.loads(last)["time"]
    return time


def _named(what: str, runs: Iterable[Run]) -> str:
    paths = ", ".join(str(run.path) for run in runs)
    return f"{what}: {paths}" if paths else ""
