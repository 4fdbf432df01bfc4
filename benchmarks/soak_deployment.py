"""Kill the operator and processes of a deployment at random moments, go on, and compare the results with a simulation's.

    python -m benchmarks.soak_deployment --kills 10

A deployment runs on this host, without containers. The kills take turns: Ctrl-C and SIGKILL to the operator's command, and
SIGKILL to the executor (with the server app), to the SuperLink and to a client. The same command with --resume goes on.
Clients keep state of their own, and the server has an optimizer, so that a bit that is lost anywhere shows in the final
files. A run that is over before all kills are done is followed by a run with the next seed.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from fedssl.app.deploy.deployment import Deployment
from fedssl.app.deploy.ports import find_free_ports
from fedssl.app.simulation import Engine
from fedssl.experiment.experiment import Experiment
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import CLIENTS, EVENTS, ROUNDS

CLIENT_COUNT = 2

EXPERIMENT: dict[str, Any] = {
    "data": {"source": "digits", "train_size": 400},
    "federation": {"clients": CLIENT_COUNT, "sample": CLIENT_COUNT},
    "model": {"kind": "cnn", "widths": [8, 16], "hidden": 16},
    "method": {"kind": "temporal_ensembling", "unlabeled_ratio": 2},
    "train": {"local_steps": 3, "batch_size": 8, "lr": 0.02, "keep_momentum": True},
    "strategy": "scaffold",
    "server": {"checkpoint_every": 3},
    "engine": {"kind": "serial", "fuse": "off"},
}

KINDS = ("operator, Ctrl-C", "executor", "client", "superlink", "operator, SIGKILL")

PAUSE = (20.0, 120.0)
"""A kill comes after a number of seconds between these two, drawn evenly."""


def deploy(folder: Path, *arguments: object) -> list[str]:
    """Return a command of a deployment."""
    return [sys.executable, "-m", "fedssl", "deploy", *map(str, arguments), "--folder", str(folder)]


def make_deployment(folder: Path) -> Deployment:
    """Make a deployment without containers on free ports, and start it."""
    gate, superlink, *clients = find_free_ports(2 + CLIENT_COUNT)
    init = ("init", "--no-containers", "--clients", CLIENT_COUNT, "--port", gate)
    subprocess.run(deploy(folder, *init), check=True, stdout=subprocess.DEVNULL)
    file = folder / "deployment.toml"
    text = file.read_text().replace("superlink_port = 8000", f"superlink_port = {superlink}")
    file.write_text(text.replace("client_port = 9100", f"client_port = {min(clients)}"))
    subprocess.run(deploy(folder, "up"), check=True, stdout=subprocess.DEVNULL)
    return Deployment.open(folder)


def kill(kind: str, operator: "subprocess.Popen[bytes]", deployment: Deployment, draw: random.Random) -> None:  # fmt: skip
    """Kill one process, with the processes that it has started."""
    if kind.startswith("operator"):
        operator.send_signal(signal.SIGINT if "Ctrl-C" in kind else signal.SIGKILL)
        return
    name = f"client-{draw.randrange(CLIENT_COUNT)}" if kind == "client" else kind
    report = json.loads((deployment.processes / f"{name}.json").read_text())
    os.killpg(report["process"], signal.SIGKILL)


def soak(deployment: Deployment, file: Path, kills: int, draw: random.Random) -> int:
    """Run an experiment to its end, killed up to `kills` times; return the number of kills."""
    done, log = 0, (deployment.folder / "operator.log").open("ab")
    name = Experiment.load(file).name
    while True:
        operator = subprocess.Popen(
            deploy(deployment.folder, "run", file, "--plain", "--resume"), stdout=log, stderr=log
        )
        while done < kills:
            try:
                operator.wait(draw.uniform(*PAUSE))
                break
            except subprocess.TimeoutExpired:
                kind = KINDS[done % len(KINDS)]
            kill(kind, operator, deployment, draw)
            done += 1
            rounds = [path.read_bytes().count(b"\n") - 1 for path in deployment.runs.glob(f"{name}/*/{ROUNDS}")]  # fmt: skip
            print(f"  kill {done}: {kind}, {max(rounds, default=0)} rounds recorded", flush=True)
        if operator.wait() == 0:
            return done
        time.sleep(1)


def models_of(run: Path) -> dict[str, str]:
    """Return a checksum of every file of weights that a run leaves."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.glob("*.safetensors")}


def main() -> None:
    """Soak a deployment, and say whether its runs are the simulation's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, done, seed = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            deployment = make_deployment(folder / "deployment")
            while done < options.kills:
                table = {
                    **EXPERIMENT,
                    "name": f"soak{seed}",
                    "rounds": options.rounds,
                    "seed": seed,
                }
                experiment = Experiment.from_dict(table)
                file = folder / f"soak{seed}.toml"
                file.write_text(experiment.to_toml())
                done += soak(deployment, file, options.kills - done, draw)
                (run,) = deployment.runs.glob(f"soak{seed}/*")
                with Engine() as engine:
                    engine.run(experiment, [RunDirectory(folder / f"simulated{seed}")])
                events = [json.loads(line)["event"] for line in (run / EVENTS).read_text().splitlines()]  # fmt: skip
                failed = (pd.read_csv(run / CLIENTS).status == "failed").sum()
                said = {kind: events.count(kind) for kind in ("interrupted", "failed", "resumed")}
                print(f"  seed {seed}: {said}, {failed} clients failed", flush=True)
                if models_of(run) != models_of(folder / f"simulated{seed}"):
                    sys.exit(f"seed {seed}: the weights are not the simulation's")
                seed += 1
        finally:
            subprocess.run(deploy(folder / "deployment", "down"), stdout=subprocess.DEVNULL)
    print(f"{done} kills, {seed} runs: the weights are the simulation's, bit for bit")


if __name__ == "__main__":
    main()
