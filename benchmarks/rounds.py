"""Rounds a second beside Flower's own simulation runtime, in one run, on the same apps and the same work.

Workload S: digits, a network of 14k weights (conv16-conv32-fc64, no normalization), K = 100, m = 10, one pass over a
client's images, batches of 32 of which a quarter is labeled, noise as the strong view, SGD with momentum.

    python benchmarks/rounds.py [--rounds 60] [--flower-rounds 15] [--workers 2]
"""

import argparse
import statistics
import time

import torch

from fedssl.config import Experiment
from fedssl.record.display import percent
from fedssl.record.rows import Observer, RoundEnd
from fedssl.simulation import Engine, check

WORKLOADS = {
    "S": {
        "name": "s",
        "data": {"source": "digits"},
        "federation": {"clients": 100, "sample": 10, "partition": "iid"},
        "augment": {"weak": "identity", "strong": "noise"},
        "model": {"kind": "cnn", "widths": [16, 32], "hidden": 64, "norm": "none"},
        "method": {"kind": "fixmatch", "unlabeled_ratio": 3},
        "train": {"local_epochs": 1, "batch_size": 8},
    }
}
ENGINES = ("serial", "ray", "flower")


class Stopwatch(Observer):
    """Note when every round ended; evaluation is switched off but for the last round."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.accuracy = float("nan")

    def round_ended(self, end: RoundEnd) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())
        self.accuracy = end.row.server_accuracy

    @property
    def seconds_a_round(self) -> float:
        """Median over the steady state: the first rounds, in which workers start, are left out."""
        gaps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(gaps[2:-1])


def measure(workload: str, engine: str, workers: int, rounds: int) -> tuple[float, float]:
    """Return (median seconds a round, seconds to the end of the first round)."""
    table = WORKLOADS[workload] | {
        "rounds": rounds,
        "engine": {"kind": engine, "workers": workers},
        "server": {"evaluate_every": 1_000_000},
    }
    experiment = Experiment.from_dict(table)
    check(experiment)
    watch = Stopwatch()
    began = time.perf_counter()
    with Engine() as machine:
        machine.run(experiment, [watch])
    print(f"  {engine}: final accuracy {percent(watch.accuracy)}", flush=True)
    return watch.seconds_a_round, watch.ends[0] - began


def main() -> None:
    """Measure every engine in turn and print ratios to Flower's runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--flower-rounds", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for workload in WORKLOADS:
        print(f"workload {workload}, {arguments.workers} workers (serial: 1)", flush=True)
        found = {}
        for engine in ENGINES:
            rounds = arguments.flower_rounds if engine == "flower" else arguments.rounds
            found[engine] = measure(workload, engine, arguments.workers, rounds)
        flower = found["flower"][0]
        print(f"{'engine':8} {'s/round':>9} {'rounds/s':>9} {'x Flower':>9} {'first round s':>14}")
        for engine, (seconds, first) in found.items():
            print(
                f"{engine:8} {seconds:9.4f} {1 / seconds:9.1f} {flower / seconds:9.1f} {first:14.1f}"
            )


if __name__ == "__main__":
    main()
