"""Run a contender in a process of its own, and read the result that the process wrote."""

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.job import Job

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT_FIRST, LEFT_OUT_LAST = 2, 1
"""Rounds that are not measured: workers start in the first two rounds, and the last round may include an evaluation."""
FEWEST_ROUNDS = LEFT_OUT_FIRST + LEFT_OUT_LAST + 1
TIMEOUT = 3600.0
"""A contender that takes longer than this (seconds) is ended."""


class LeftOut(Exception):
    """A contender cannot be run here; the message says why, and what to do."""


@dataclass(frozen=True)
class Outcome:
    """The result of one run of one contender.

    Args:
        ends: Seconds from the process's start to the end of each round.
        driver_mib: Peak resident memory (MiB) of the process that runs the server.
        all_mib: Sum of the peaks (MiB) of this process and its workers; shared pages count once per process.
        accuracy: Accuracy of the final model on the test images, in [0, 1].
    """

    ends: tuple[float, ...]
    driver_mib: float
    all_mib: float
    accuracy: float

    @property
    def first(self) -> float:
        """Seconds from the process's start to the end of the first round."""
        return self.ends[0]

    @property
    def seconds_a_round(self) -> float:
        """Median of the seconds per round, over the rounds that are measured."""
        seconds = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(seconds[LEFT_OUT_FIRST - 1 : len(seconds) - LEFT_OUT_LAST])


def measure(
    contender: str,
    table: dict[str, Any],
    rounds: int,
    workers: int,
    weights: Path | None = None,
) -> Outcome:
    """Run a contender once.

    Args:
        contender: Name of the contender.
        table: The experiment without rounds and engine.
        rounds: Number of rounds.
        workers: Number of workers of a contender that runs in parallel.
        weights: File for the final model; None: the model is not saved.

    Raises:
        LeftOut: A package is missing, or this version of fedssl lacks what the contender needs.
        RuntimeError: The contender failed; the message is the end of its output.
    """
    one = CONTENDERS[contender]
    if one.package is not None and importlib.util.find_spec(one.package) is None:
        raise LeftOut(f"{one.package} is not installed: {one.install}")
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder) / "result.json", Path(folder) / "output"
        job = Job(
            *(contender, table, rounds, workers, time.monotonic(), str(result)),
            str(weights) if weights else None,
        )
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m"]
        command = [*(launcher if one.torchrun else []), "benchmarks.contenders"]
        status = _run([sys.executable, "-m", *command, json.dumps(asdict(job))], output)
        if status != 0 or not result.exists():
            tail = "\n".join(output.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{contender} ended with status {status}:\n{tail}")
        outcome = json.loads(result.read_text())
    if "left_out" in outcome:
        raise LeftOut(outcome["left_out"])
    return Outcome(**outcome | {"ends": tuple(outcome["ends"])})


def _run(command: list[str], output: Path) -> int:
    """Run a command, and return its exit status; if it takes too long, end it and all processes that it started."""
    # One thread per process from the first import on: torch's own setting does not reach threads that start later.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"ended after more than {TIMEOUT:.0f} s: {command}") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
