"""Measure how the time of one engine grows with m and with K, and how its server's memory grows with m.

    python -m benchmarks.scaling [--contender fedssl-ray] [--workers 2] [--rounds 8] [--json FILE]
    python -m benchmarks.scaling --memory

Every client holds two 8x8 images and takes one step. Each case runs in a process of its own.
"""

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.local_step import Work
from benchmarks.processes import FEWEST_ROUNDS, Outcome, measure
from benchmarks.workloads import MODEL, Plain, Workload
from fedssl.data.cache import CACHE_VARIABLE
from fedssl.experiment.experiment import Experiment

SAMPLES = (10, 30, 100, 300, 1_000)
CLIENTS = (1_000, 10_000, 100_000, 1_000_000)
FIXED_CLIENTS, FIXED_SAMPLE = 10_000, 100

MEMORY_SAMPLES = (10, 1_000)
MEMORY_CLIENTS = 1_000
MEMORY_ROUNDS = 2
WIDE: dict[str, Any] = MODEL | {"hidden": 45_000}
"""A model of about 25 MB for 8x8 images; nearly all its weights are in one layer."""


def case(clients: int, sample: int, model: dict[str, Any] = MODEL) -> Workload:
    """Return the workload with K = `clients` and m = `sample`."""
    title = f"m = {sample:,} of K = {clients:,}"
    images, shape = 2 * clients, tuple(model.items())
    return Workload(title, "tiled", clients, sample, Work(1, 1, 1), 0, images, model=shape)


def run(workload: Workload, contender: str, workers: int, rounds: int, folder: Path) -> Outcome:
    """Prepare the images of one case, and then measure it."""
    table = workload.table(folder, folder)
    Experiment.from_dict(table).data.prepare()
    return measure(contender, table, rounds, workers)


def times(cases: list[Workload], given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure cases, and print their seconds per round and the ratios to the first case."""
    first, found = 0.0, []
    for workload in cases:
        outcome = run(workload, given.contender, given.workers, given.rounds, folder)
        seconds = outcome.seconds_a_round
        first = first or seconds
        print(
            f"  {workload.title:24} {seconds:9.4f} s/round {seconds / first:8.2f} x the first "
            f"{1e3 * seconds / workload.sample:8.2f} ms/client {outcome.first:8.1f} s to the first round's end",
            flush=True,
        )
        found.append({"case": workload.title, **asdict(outcome)})
    return found


def memory(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Print the server's peak memory with few and with many clients per round, and the difference in models."""
    cases = [case(MEMORY_CLIENTS, sample, WIDE) for sample in MEMORY_SAMPLES]
    network = Plain(Experiment.from_dict(cases[0].table(folder, folder))).network()
    model = sum(w.numel() * w.element_size() for w in network.state_dict().values()) / 2**20
    print(f"  the model has {model:.1f} MiB")
    found = []
    for workload in cases:
        outcome = run(workload, given.contender, given.workers, MEMORY_ROUNDS, folder)
        print(f"  {workload.title:24} driver's peak {outcome.driver_mib:8.0f} MiB", flush=True)
        found.append({"case": workload.title, **asdict(outcome)})
    grown = found[-1]["driver_mib"] - found[0]["driver_mib"]
    print(f"  difference {grown:.0f} MiB = {grown / model:.1f} models")
    return found


def main() -> None:
    """Measure time, or memory with --memory, and write the results to a file if --json is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contender", choices=list(CONTENDERS), default="fedssl-ray")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    given = parser.parse_args()
    if given.rounds < FEWEST_ROUNDS:
        parser.error(
            f"--rounds: at least {FEWEST_ROUNDS}, because the first and the last do not count"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[CACHE_VARIABLE] = str(folder / "cache")
        print(f"{given.contender}, {given.workers} workers", flush=True)
        if given.memory:
            found = {"memory": memory(given, folder)}
        else:
            by_sample = [case(FIXED_CLIENTS, sample) for sample in SAMPLES]
            by_clients = [case(clients, FIXED_SAMPLE) for clients in CLIENTS]
            found = {"m": times(by_sample, given, folder), "K": times(by_clients, given, folder)}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
