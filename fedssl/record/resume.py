"""Find the run that an experiment goes on with: its name, its seed and its settings must be the same."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from fedssl.core.errors import InputError
from fedssl.core.toml import settings_as_text
from fedssl.core.trust import NOBODY, trusting
from fedssl.experiment.effects import WITHOUT_EFFECT
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.paths import resolve_paths
from fedssl.record.global_model import GlobalModel
from fedssl.record.lines import read_rounds
from fedssl.record.located import locate
from fedssl.record.rows import Outcome
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import (
    DATA,
    EMA,
    EXPERIMENT,
    MODEL,
    ROUNDS,
    RUNS,
    STATE,
    SUMMARY,
    has_begun,
    never_began,
    new_run_path,
)

MOST_NAMED = 8
"""An error message names at most this many differences between two experiments."""


def directory_to_resume(
    experiment: Experiment, folder: Path | None, root: Path = RUNS
) -> RunDirectory:
    """Return the directory of the run that an experiment goes on with; a new directory if there is no such run.

    Args:
        experiment: The experiment to run.
        folder: Folder of the run; None: the newest run below `root` with the experiment's name, seed and settings.
        root: Folder of all runs.

    Raises:
        InputError: The run has other settings, or another process uses its folder.
    """
    return RunDirectory(
        find_run(experiment, folder, root) or new_run_path(experiment, root), resume=True
    )


def find_run(experiment: Experiment, folder: Path | None, root: Path) -> Path | None:
    """Return the folder of the run that an experiment goes on with, as `directory_to_resume` does; None: there is none.

    Args:
        experiment, folder, root: As in `directory_to_resume`.

    Raises:
        InputError: The run has other settings.
    """
    if folder is not None:
        if has_begun(folder):
            refuse_changes(folder, experiment)
        return folder
    runs = _runs_of(experiment, root)
    begun = [path for path in runs if has_begun(path)]
    same = [path for path in begun if not list(_changes(path, experiment))]
    if same:
        return same[0]
    if runs and never_began(runs[0]):
        return runs[0]  # a series of runs was stopped before this run began
    if begun:
        refuse_changes(begun[0], experiment)
    return None


def outcome_of(path: Path) -> Outcome:
    """Return the outcome of a finished run, read from its folder."""
    state = path / STATE
    summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    facts = json.loads((path / DATA).read_text(encoding="utf-8"))
    share = summary.get("most_frequent_class")
    return Outcome(
        model=GlobalModel(
            arrays=load_file(path / MODEL),
            ema=load_file(path / EMA),
            state=load_file(state) if state.exists() else {},
        ),
        rounds=read_rounds(path / ROUNDS),
        seconds=float(summary["seconds"]),
        most_frequent=math.nan if share is None else float(share),
        stopped=str(summary.get("stopped", "")),  # an older record has all its rounds
        judges=tuple(facts.get("judged_by", ())),  # an older record names no judges
        class_names=tuple(facts.get("class_names", ())),
    )


def _runs_of(experiment: Experiment, root: Path) -> list[Path]:
    """Return the folders of an experiment's runs with names as `new_run_path` gives them, newest first."""
    wanted = re.compile(rf"(\d{{8}}-\d{{6}})-seed{experiment.seed}(?:-(\d+))?")
    found = [
        ((match[1], int(match[2] or 1)), path)
        for path in (root / experiment.name).glob("*")
        if (match := wanted.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def refuse_changes(
    path: Path,
    experiment: Experiment,
    *,
    field: str = "--resume",
    remedy: str = "put them back, or run without --resume to begin anew",
) -> None:
    """Raise `InputError` with the differences if the run in a folder has other settings than an experiment.

    Args:
        path: Folder of a run that has begun.
        experiment: The experiment that should go on with the run.
        field, remedy: Field and remedy of the error.
    """
    changes = list(_changes(path, experiment))
    if not changes:
        return
    more = f" (and {len(changes) - MOST_NAMED} more)" if len(changes) > MOST_NAMED else ""
    raise InputError(
        field,
        f"the run in {path} has other settings: {'; '.join(changes[:MOST_NAMED])}{more}",
        remedy,
    )


def _changes(path: Path, experiment: Experiment) -> Iterator[str]:
    """Yield each difference between an experiment and the experiment of the run in a folder, as text.

    A path is the same if it is written in the same way, or if both ways lead to the same place, from whatever current folders.
    """
    with trusting(NOBODY):
        recorded = Experiment.read(path / EXPERIMENT)
    before, now = _as_text(recorded), _as_text(experiment)
    places = _as_text(resolve_paths(locate(recorded, path)))
    places_now = _as_text(resolve_paths(experiment))
    for key in sorted(before | now):
        was, wanted = before.get(key, "unset"), now.get(key, "unset")
        if was != wanted and places.get(key) != places_now.get(key):
            yield f"{key} was {was} and is {wanted}"
    orders, wanted_orders = _orders_of_rates(before), _orders_of_rates(now)
    for section, order in orders.items():
        wanted_order = wanted_orders.get(section, order)
        if order != wanted_order and set(order) == set(wanted_order):
            yield f"the order of {section} was {', '.join(order)} and is {', '.join(wanted_order)}"


def _as_text(experiment: Experiment) -> dict[str, str]:
    return settings_as_text(settings_that_change_results(experiment))


def _orders_of_rates(settings: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the patterns of each table of rates in their order, because the first pattern that matches counts."""
    orders: dict[str, list[str]] = {}
    for key in settings:
        section, found, pattern = key.partition("train.rates.")
        if found:
            orders.setdefault(f"{section}train.rates", []).append(pattern)
    return orders


def settings_that_change_results(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that can change the result of a round; of the engine, only those that decide fusing."""
    whole = experiment.to_dict()
    table = {name: section for name, section in whole.items() if name not in WITHOUT_EFFECT}
    for name in (
        "checkpoint_every",
        "timeout",
        "min_success",
    ):  # a run that they stopped may go on with others
        del table["server"][name]
    for name in experiment.data.places:
        del table["data"][name]
    table["engine"] = {"fuse": experiment.engine.fuse_in_effect}
    return table
