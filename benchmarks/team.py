"""Compare a team of two processes with one process, on one core and on two: FixMatch steps of one client.

The three ways take turns in one run. Of the team, the share of time in sums over the processes is measured too; waiting
for the other process counts. On a machine with one GPU, `--device cuda` puts both processes on that GPU.

    python -m benchmarks.team [--repeats 5] [--device cpu]
"""

import argparse
import copy
import multiprocessing
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.step import shard_of_photos
from fedssl.augment.policy import Augment
from fedssl.clients.team_group import join
from fedssl.data.shard import ImageSpec, Shard
from fedssl.methods.fixmatch import FixMatch
from fedssl.models.base import MODELS
from fedssl.training.loop import fit
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe
from fedssl.training.team import Team, in_team

GRAY = ImageSpec((1, 28, 28), 10, (0.29,), (0.35,), flips=True)
COLOR = ImageSpec((3, 32, 32), 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), flips=True)
CNN = {"kind": "cnn", "norm": "group"}
WRN = {"kind": "wrn", "norm": "group"}
WORKLOADS = {
    "cnn, 28x28, B=16, mu=3": (CNN, GRAY, 16, 3, 10),
    "cnn, 32x32, B=32, mu=7": (CNN, COLOR, 32, 7, 5),
    "WRN-28-2, 28x28, B=8, mu=3": (WRN, GRAY, 8, 3, 3),
    "WRN-28-2, 32x32, B=8, mu=7": (WRN, COLOR, 8, 7, 2),
}
"""Name -> model, images, B, mu, number of steps that are timed together."""


class Client:
    """A client of a workload, as one process of a team, or a process without a team, trains it."""

    def __init__(self, name: str, device: str) -> None:
        model, spec, batch_size, ratio, self.steps = WORKLOADS[name]
        method = FixMatch(unlabeled_ratio=ratio)
        train = Train(local_steps=self.steps, batch_size=batch_size)
        self.recipe = Recipe(method, train, Augment())
        self.shard: Shard = shard_of_photos(spec=spec).to(torch.device(device))
        self.network: nn.Module = build_network(MODELS.build(model), method, spec, 0).to(device)

    def seconds(self, turn: int, within: AbstractContextManager[None]) -> float:
        """Take the workload's steps from the same weights each time; return the seconds of one step."""
        network = copy.deepcopy(self.network)
        began = time.perf_counter()
        with within:
            fit(
                network, self.shard, self.recipe, {},
                seed=0, server_round=turn, client=0, phase_round=turn, phase_rounds=turn,
            )  # fmt: skip
        return (time.perf_counter() - began) / self.steps


class TimedSums:
    """The sums of a team, with the time and the bytes that they take."""

    def __init__(self, team: Team) -> None:
        self._sum = team._reduce
        self.seconds = 0.0
        self.bytes = 0
        self.team = Team(team.rank, team.size, self._timed)

    def _timed(self, tensor: Tensor) -> None:
        assert self._sum is not None
        began = time.perf_counter()
        self._sum(tensor)
        self.seconds += time.perf_counter() - began
        self.bytes += tensor.nbytes


def other_process(link: Connection, place: str, device: str) -> None:
    """Take the other half of each team's steps that process 0 names."""
    torch.set_num_threads(1)
    team = join(place, 1, [device] * 2)
    name, client = "", None
    while (order := link.recv()) is not None:
        if order[0] != name or client is None:
            name, client = order[0], Client(order[0], device)
        link.send("ready")
        client.seconds(order[1], in_team(team))


def measure(name: str, repeats: int, device: str, sums: TimedSums, link: Connection) -> None:
    """Time the three ways in turn, and print their medians and ratios."""
    client = Client(name, device)
    ways: dict[str, list[float]] = {"one core": [], "two threads": [], "team": []}
    shares, sent = [], 0.0
    for turn in range(1, repeats + 2):
        link.send((name, turn))
        link.recv()
        sums.seconds, sums.bytes = 0.0, 0
        took = {"team": client.seconds(turn, in_team(sums.team))}
        share, sent = sums.seconds / client.steps / took["team"], sums.bytes / client.steps
        took["one core"] = client.seconds(turn, nullcontext())
        torch.set_num_threads(2)
        took["two threads"] = client.seconds(turn, nullcontext())
        torch.set_num_threads(1)
        if turn > 1:  # the first turn warms up
            shares.append(share)
            for way, seconds in took.items():
                ways[way].append(seconds)
    alone = ways["one core"]
    text = [f"{name}: one core {statistics.median(alone) * 1e3:.0f} ms a step"]
    for way in ("two threads", "team"):
        gains = [a / b for a, b in zip(alone, ways[way], strict=True)]
        text.append(f"{way} {statistics.median(gains):.2f}x ({min(gains):.2f} to {max(gains):.2f})")
    shared = f"{statistics.median(shares):.0%} of the team's time in sums of {sent / 1e6:.1f} MB"
    print("; ".join([*text, shared]), flush=True)


def main() -> None:
    """Measure every workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        link, theirs = processes.Pipe()
        place = str(Path(folder, "meeting"))
        other = processes.Process(target=other_process, args=(theirs, place, options.device))
        other.start()
        theirs.close()  # so that this process hears of the other one's end
        sums = TimedSums(join(place, 0, [options.device] * 2))
        for name in WORKLOADS:
            measure(name, options.repeats, options.device, sums, link)
        link.send(None)
        other.join()


if __name__ == "__main__":
    main()
