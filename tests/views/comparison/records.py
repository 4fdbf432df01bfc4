"""Run directories that are written by hand, so that tests of comparisons need no training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedssl.record.global_model import GlobalModel
from fedssl.record.lines import Table
from fedssl.record.rows import NAN, Outcome, RoundRow, summarize
from fedssl.record.run_directory import as_json
from tests.helpers import small_experiment

DATA: dict[str, Any] = {
    "source": "digits",
    "evaluated_on": "test",
    "class_names": ["zero", "one"],
    "shape": [1, 8, 8],
    "num_train": 400,
    "held_out_sha256": "same",
}


@dataclass(frozen=True)
class Spent:
    """What every round of a run costs."""

    seconds: float = 1.0
    bytes_up: int = 1_000_000
    bytes_down: int = 2_000_000
    virtual_seconds: float = NAN
    clients_inactive: int = 0


def rows_of(accuracies: Sequence[float], spent: Spent = Spent()) -> tuple[RoundRow, ...]:
    """Return rounds whose EMA has these accuracies, and whose global model is .1 worse."""
    return tuple(
        RoundRow(
            round=number,
            phase=0,
            method="fixmatch",
            seconds=spent.seconds,
            server_accuracy=accuracy - 0.1,
            server_loss=0.5,
            ema_accuracy=accuracy,
            ema_loss=0.5,
            loss=0.1,
            pseudo_label_accuracy=0.9,
            pseudo_label_coverage=0.5,
            bytes_up=spent.bytes_up,
            bytes_down=spent.bytes_down,
            clients_ok=3,
            clients_failed=1,
            clients_lost=2,
            clients_inactive=spent.clients_inactive,
            virtual_seconds=spent.virtual_seconds * number,
        )
        for number, accuracy in enumerate(accuracies, 1)
    )


def _look(accuracies: Sequence[float]) -> dict[str, Any]:
    """Return a closer look at models that name the first of 100 images correctly, as many as the last accuracy says."""
    right = min(100, round(100 * accuracies[-1]))
    predicted = {"predicted": [1] * right + [0] * (100 - right)}
    return {
        "round": len(accuracies),
        "images": [f"{i:x}" for i in range(100)],
        "labels": [1] * 100,
        "models": {"ema": predicted, "model": predicted},
    }


def record(
    path: Path,
    accuracies: Sequence[float],
    *,
    spent: Spent = Spent(),
    facts: dict[str, Any] | None = None,
    partition: str = "",
    finished: bool = True,
    ended: str = "2026-01-01T00:00:00",
    **settings: Any,
) -> Path:
    """Write the directory of a run and return it.

    Args:
        path: Where.
        accuracies: Of the EMA, after each round.
        spent: What a round costs.
        facts: What its data.json says otherwise.
        partition: Content of its partition.csv; by default one that its seed decides.
        finished: Whether it has a summary.
        ended: When its last event was.
        settings: Laid over those of the small experiment.
    """
    experiment = small_experiment(rounds=len(accuracies), server={"last_rounds": 1}, **settings)
    path.mkdir(parents=True)
    rows = rows_of(accuracies, spent)
    table = Table(path / "rounds.csv", RoundRow)
    table.add(rows)
    table.close()
    (path / "data.json").write_text(json.dumps(DATA | (facts or {})))
    (path / "partition.csv").write_text(partition or f"split of seed {experiment.seed}")
    (path / "events.jsonl").write_text(json.dumps({"time": ended, "event": "ended"}) + "\n")
    (path / "experiment.toml").write_text(experiment.to_toml())
    if finished:
        seconds = spent.seconds * len(rows)
        judges = tuple((facts or {}).get("judged_by", ()))
        summary = summarize(experiment, Outcome(GlobalModel(), rows, seconds, judges=judges))
        (path / "summary.json").write_bytes(as_json(summary))
        (path / "evaluation.json").write_text(json.dumps(_look(accuracies)))
    return path
