"""Small experiments for tests."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import Result
from flwr.app import RecordDict
from typer.testing import CliRunner

from fedssl.cli import app
from fedssl.clients.local_data import simulated_federation
from fedssl.data.federation import Federation
from fedssl.engine.local_grid import LocalGrid
from fedssl.exchange import protocol
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.families import family_at
from fedssl.experiment.settings import merge

SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 2,
    "data": {"source": "digits", "train_size": 400},
    "federation": {"clients": 6, "sample": 3},
    "model": {"kind": "cnn", "widths": [8, 16], "hidden": 16},
    "method": {"kind": "fixmatch", "unlabeled_ratio": 2, "threshold": 0.3},
    "train": {"local_steps": 2, "batch_size": 8},
    "engine": {"kind": "serial", "fuse": "off"},
}


CHAIN: dict[str, Any] = {
    "rounds": None,
    "phases": [
        {
            "rounds": 1,
            "method": {"kind": "simclr", "projection": [12, 6]},
            "server": {"evaluator": {"kind": "linear_probe", "layers": ["projection"]}},
        },
        {"rounds": 2, "method": {"kind": "fine_tune"}},
        {
            "rounds": 3,
            "model": {"widths": [8, 16], "hidden": 24},
            "method": {"kind": "distill", "unlabeled_ratio": 2, "distill_weight": 0.5},
        },
    ],
}
"""Phases that change the network: pre-train, fine-tune from the middle of the head, distil into a larger student."""


def small_experiment(**overrides: Any) -> Experiment:
    """Return a federation that trains in a moment, with sections laid over it."""
    return Experiment.from_dict(merge(SMALL, overrides, family_at))


def small_toml(path: Path, **overrides: Any) -> Path:
    """Write such an experiment to a file."""
    path.write_text(small_experiment(**overrides).to_toml(), encoding="utf-8")
    return path


def federation_of(experiment: Experiment) -> Federation:
    return simulated_federation(experiment)


def kept_states(grid: LocalGrid) -> dict[int, RecordDict]:
    """Return what each of the first hundred clients keeps between rounds, if it keeps anything."""
    kept = {client: grid.states.get(client) for client in range(100)}
    return {c: protocol.state_from_bytes(state) for c, state in kept.items() if state is not None}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def broken_client() -> tuple[int, int]:
    """Return (client, size) of one whose number of images no other has: how `plugins.raising` knows it."""
    sizes = federation_of(small_experiment()).sizes.tolist()
    size = next(size for size in sizes if sizes.count(size) == 1)
    return sizes.index(size), size


def fedssl(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def command(*arguments: object) -> list[str]:
    """Return the command line as a process of its own takes it."""
    return [sys.executable, "-m", "fedssl", *map(str, arguments)]


def in_a_process(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, which must end well within `timeout` seconds."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def finished(result: Result) -> None:
    """Assert that a command of this process ended well."""
    assert result.exit_code == 0, result.output


def refused(result: Result, *words: str) -> None:
    """Assert that a command ended with exit 2 and one message that holds these words."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.output.count("error:") == 1
    for word in words:
        assert word in result.output.replace("\n", " "), result.output
