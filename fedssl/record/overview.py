"""A run at a glance: its state, how far it has come and its result; read without torch, so hundreds of runs take a moment."""

import contextlib
import csv
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedssl.core.files import whole_lines
from fedssl.core.toml import read_toml
from fedssl.record.run_path import EVENTS, EXPERIMENT, ROUNDS, SUMMARY, is_running
from fedssl.record.tags import read_tags


class State(StrEnum):
    """The state of a run."""

    running = "running"
    finished = "finished"
    interrupted = "interrupted"
    """A person or a signal told the run to stop."""
    failed = "failed"
    """The run stopped by itself, and its record says why."""
    killed = "killed"
    """The run ended without a word, as after SIGKILL or a power cut."""


INTERRUPTIONS = ("KeyboardInterrupt", "SystemExit", "a signal ended")
"""In an older record, the reason of a run that was told to stop begins with one of these words."""

NAN = float("nan")

LONGEST_LINE = 1 << 16
"""A line at the beginning of a file is read up to this many bytes."""


@dataclass(frozen=True)
class Overview:
    """What a list says of a run.

    Args:
        path: The run directory.
        name: Name of its experiment; the folder's name if the record does not tell.
        method: Name of the method of the last phase that has begun.
        seed: Seed of the experiment; None if the record does not tell.
        state: The state of the run at this moment.
        note: Why the run stopped, what its summary remarks, or which file of it cannot be read; mostly empty.
        rounds: Number of recorded rounds, without a last round that ended the run because too many clients failed.
        num_rounds: Number of all rounds of the experiment; 0 if the record does not tell.
        accuracy: Accuracy of the moving average in [0, 1]: of a finished run the mean over the last evaluations, of any other
            run that of the last evaluation; NaN if there is none.
        seconds: Time of the recorded rounds (seconds); NaN if unknown.
        began: Time at which the run began (seconds since 1970); NaN if unknown.
        tags: Tags that the user gave the run, sorted.
    """

    path: Path
    name: str
    method: str = ""
    seed: int | None = None
    state: State = State.killed
    note: str = ""
    rounds: int = 0
    num_rounds: int = 0
    accuracy: float = NAN
    seconds: float = NAN
    began: float = NAN
    tags: tuple[str, ...] = ()

    @property
    def age(self) -> float:
        """Time since the run began (seconds); NaN if unknown."""
        return time.time() - self.began


def overview(path: Path) -> Overview:
    """Return a run at a glance; a file that cannot be read is named in the note, and what it says is unknown."""
    files = regular_files(path)
    problems: list[str] = []
    began = NAN
    if EVENTS in files:
        with _noting(problems, EVENTS):
            began = _time_of(_first_line(path / EVENTS))
    facts: dict[str, Any] | None = None
    if SUMMARY in files:
        facts = _finished(path, problems)
    elif is_running(path):
        facts = {**_so_far(path, files, problems), "state": State.running}
    elif SUMMARY in regular_files(path):  # the run has ended since the first look
        facts = _finished(path, problems)
    else:
        facts = {**_so_far(path, files, problems), **_how_it_stopped(path, files, problems)}
    note = "; ".join([*problems, *([facts.pop("note")] if facts.get("note") else [])])
    facts.pop("note", None)
    return Overview(path=path, began=began, tags=read_tags(path), note=note, **facts)


def regular_files(path: Path) -> frozenset[str]:
    """Return the names of a folder's regular files; opening a pipe would block for ever."""
    with os.scandir(path) as entries:
        return frozenset(entry.name for entry in entries if entry.is_file())


def accuracy_by_round(path: Path) -> list[tuple[int, float]]:
    """Return (round, accuracy of the moving average in [0, 1]) of each evaluated round that is recorded.

    Raises:
        ValueError: The table of rounds is damaged.
    """
    if ROUNDS not in regular_files(path):
        return []
    rows = [(int(row["round"]), _float(row["ema_accuracy"])) for row in _rows(path)]
    return [(round, value) for round, value in rows if not math.isnan(value)]


@contextlib.contextmanager
def _noting(problems: list[str], name: str) -> Iterator[None]:
    """Note that a file cannot be read; a stranger's record may hold anything, so reading it may raise anything."""
    try:
        yield
    except Exception:
        problems.append(f"{name} cannot be read")


def _finished(path: Path, problems: list[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": path.name, "state": State.finished}
    with _noting(problems, SUMMARY):
        summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        facts |= {
            "name": str(summary["name"]),
            "method": str(summary.get("method", "")),
            "seed": int(summary["seed"]),
            "rounds": int(summary["rounds"]),
            "num_rounds": int(summary["rounds"]),
            "accuracy": _number(summary["ema_accuracy"]),
            "seconds": _number(summary["seconds"]),
            "note": str(summary.get("remark", "")),
        }
    return facts


def _so_far(path: Path, files: frozenset[str], problems: list[str]) -> dict[str, Any]:
    """Return what the experiment file and the recorded rounds of an unfinished run say."""
    facts: dict[str, Any] = {"name": path.name}
    table: dict[str, Any] = {}
    with _noting(problems, EXPERIMENT):
        if EXPERIMENT not in files:
            raise ValueError("it is no regular file")
        table = read_toml(path / EXPERIMENT)
        phases = table.get("phases", [])
        total = sum(phase["rounds"] for phase in phases) or table["rounds"]
        first = phases[0] if phases else {}
        method = {**table.get("method", {}), **first.get("method", {})}.get("kind", "")
        facts |= {"name": str(table["name"]), "seed": int(table["seed"])}
        facts |= {"num_rounds": int(total), "method": str(method)}
    if ROUNDS in files:
        with _noting(problems, ROUNDS):
            rows = list(_rows(path))
            seen = [_float(row["ema_accuracy"]) for row in rows]
            known = [value for value in seen if not math.isnan(value)]
            least = float(table.get("server", {}).get("min_success", 0))
            done = len(rows) - bool(rows and _has_failed(rows[-1], least))
            facts |= {"rounds": done, "accuracy": known[-1] if known else NAN}
            facts |= {"seconds": sum(_float(row["seconds"]) for row in rows)}
            facts |= {"method": rows[-1]["method"]} if rows else {}
    return facts


def _has_failed(row: Mapping[str, str], least: float) -> bool:
    """Return whether a recorded round ended its run, because a smaller share than `least` of its clients succeeded."""
    answered = int(row["clients_ok"]) + int(row.get("clients_inactive") or 0)
    failed = int(row["clients_failed"])
    return failed > 0 and (answered == 0 or answered < least * (answered + failed))


def _how_it_stopped(path: Path, files: frozenset[str], problems: list[str]) -> dict[str, Any]:
    """Return the state, and the reason if one is recorded, of a run that does not go on."""
    if EVENTS in files:
        with _noting(problems, EVENTS):
            for line in reversed(whole_lines(path / EVENTS).splitlines()):
                event = json.loads(line)
                if event["event"] in ("began", "resumed", "ended"):
                    break
                if event["event"] == "interrupted":
                    return {"state": State.interrupted}
                if event["event"] == "failed":
                    reason = str(event["reason"])
                    if reason.startswith(INTERRUPTIONS):
                        return {"state": State.interrupted}
                    return {"state": State.failed, "note": reason.partition("\n")[0]}
    return {"state": State.killed}


def _rows(path: Path) -> Iterator[Mapping[str, str]]:
    """Yield the recorded rounds as texts by column; a last line that is still being written is ignored."""
    yield from csv.DictReader(io.StringIO(whole_lines(path / ROUNDS), newline=""))


def _first_line(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        event: dict[str, Any] = json.loads(file.readline(LONGEST_LINE) or b"{}")
    return event


def _time_of(event: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp() if "time" in event else NAN


def _number(value: Any) -> float:
    """Return a number of a JSON file, in which an unknown number is null; NaN also if it is infinite."""
    known = NAN if value is None else float(value)
    return known if math.isfinite(known) else NAN


def _float(text: str) -> float:
    return _number(text or None)
