"""Kill runs, and workers of runs, at random moments, and compare the results with those of an undisturbed run.

    python benchmarks/soak.py --kill-run 20                   # SIGKILL to the whole process group, then --resume
    python benchmarks/soak.py --kill-workers 200              # kill -9 to an actor every few rounds of one run
    python benchmarks/soak.py --kill-ray gcs_server --rounds 1500    # kill -9 to a process of Ray's own, then --resume

The experiment has small clients with their own state, an optimizer at the server, and phases, so that a bit that is
lost anywhere shows in the final files.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd

from fedssl.app.simulation import Engine
from fedssl.experiment.experiment import Experiment
from fedssl.record.rows import Observer, RoundEnd
from fedssl.record.run_directory import TABLES, RunDirectory
from fedssl.record.run_path import CLIENTS, EVENTS, ROUNDS

EXPERIMENT: dict[str, Any] = {
    "name": "soak",
    "data": {"source": "digits"},
    "federation": {"clients": 20, "sample": 8},
    "model": {"widths": [8, 16], "hidden": 16},
    "method": {"kind": "temporal_ensembling", "unlabeled_ratio": 2},
    "train": {"local_steps": 3, "batch_size": 8, "lr": 0.02, "keep_momentum": True},
    "strategy": {"kind": "flwr:FedAdam", "options": {"eta": 0.01}},
    "server": {"checkpoint_every": 5},
    "system": {"dropout": 0.1},
    "engine": {"kind": "ray", "workers": 2, "state_memory": 0.05},
}


def experiment_of(rounds: int, **engine: Any) -> Experiment:
    """Return an experiment of `rounds` rounds in two phases."""
    first = rounds // 2
    phases = [{"rounds": first}, {"rounds": rounds - first, "method": {"kind": "freematch"}}]
    table = {**EXPERIMENT, "phases": phases, "engine": {**EXPERIMENT["engine"], **engine}}
    return Experiment.from_dict(table)


def bits(run: Path) -> dict[str, str]:
    """Return a checksum of every file that must not depend on the kills."""
    found = {p.name: p.read_bytes() for p in run.glob("*.safetensors")}
    for name in TABLES:
        table = pd.read_csv(run / name, dtype=str).drop(columns="seconds", errors="ignore")
        found[name] = table.to_csv().encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(found.items())}


def command(file: Path, out: Path) -> list[str]:
    """Return the command that starts a run, or resumes it."""
    return [sys.executable, "-m", "fedssl", "run", str(file), "--resume", "--plain", "--out", str(out)]  # fmt: skip


def finished_rounds(out: Path) -> int:
    """Return the number of rounds in a run's record."""
    path = out / ROUNDS
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def kill_run(kills: int, rounds: int, seed: int, folder: Path) -> Path:
    """Run to the end, killed and resumed `kills` times; return the run directory."""
    draw = random.Random(seed)
    file, out = folder / "soak.toml", folder / "killed"
    file.write_text(experiment_of(rounds).to_toml())
    done = 0
    while True:
        began = time.monotonic()
        process = subprocess.Popen(
            command(file, out),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if done < kills:
            wait = wait_for_progress(process, out, draw)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                done += 1
                at = f"after {time.monotonic() - began:.1f} s, {wait} rounds further"
                print(
                    f"  kill {done}: {at}, {finished_rounds(out)} of {rounds} recorded", flush=True
                )
                continue
        text, _ = process.communicate()
        if process.returncode != 0:
            sys.exit(f"exit {process.returncode} after {done} kills\n{text}")
        if done < kills:
            sys.exit(f"the run finished after {done} kills; give more --rounds")
        return out


def wait_for_progress(process: subprocess.Popen[str], out: Path, draw: random.Random) -> int:
    """Wait for some rounds and a moment or, in one of five calls, for up to 8 s: a run may not even have started."""
    if draw.random() < 0.2:
        time.sleep(draw.uniform(0.0, 8.0))
        return 0
    before, wanted = finished_rounds(out), draw.randint(1, 12)
    lowest = before
    while process.poll() is None:
        now = finished_rounds(out)
        lowest = min(lowest, now)  # a resumed run first cuts its record back to the checkpoint
        if now >= lowest + wanted and now != before:
            break
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, 0.2))
    return wanted


class WorkerKiller(Observer):
    """Kill a random actor of this process's Ray at a random moment, once every few rounds."""

    def __init__(self, every: int, seed: int) -> None:
        self.every = every
        self.kills = 0
        self._draw = random.Random(seed)

    def round_ended(self, end: RoundEnd) -> None:
        """Schedule a kill for a little later, in the middle of the next rounds."""
        if end.row.round % self.every == 0:
            threading.Timer(self._draw.uniform(0.0, 0.2), self._kill).start()

    def _kill(self) -> None:
        actors = workers_of(os.getpid())
        if actors:
            os.kill(self._draw.choice(actors), signal.SIGKILL)
            self.kills += 1


def workers_of(ancestor: int) -> list[int]:
    """Return the Ray actors among the descendants of a process (Linux only)."""
    parents, actors = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            name = (path / "cmdline").read_bytes()
        except OSError:
            continue  # the process has ended meanwhile
        parents[int(path.name)] = int(fields[1])
        if name.startswith(b"ray::") and b"Agent" not in name and b"IDLE" not in name:
            actors.append(int(path.name))

    def is_below(process: int) -> bool:
        while process > 1:
            process = parents.get(process, 0)
            if process == ancestor:
                return True
        return False

    return [actor for actor in actors if is_below(actor)]


def kill_workers(rounds: int, every: int, seed: int, folder: Path) -> Path:
    """Run while workers are killed; return the run directory."""
    killer = WorkerKiller(every, seed)
    with Engine() as engine:
        engine.run(experiment_of(rounds), [RunDirectory(folder / "killed"), killer])
    clients = pd.read_csv(folder / "killed" / CLIENTS)
    print(f"  {killer.kills} workers killed, {(clients.status == 'failed').sum()} clients failed")
    if killer.kills < rounds // every // 2:
        sys.exit("too few workers were killed for a meaningful test")
    return folder / "killed"


def kill_ray(program: str, rounds: int, folder: Path) -> Path:
    """Kill a process of Ray's own, check that the run reports and records it, and resume; return the run directory."""
    file, out = folder / "soak.toml", folder / "killed"
    file.write_text(experiment_of(rounds).to_toml())
    process = subprocess.Popen(
        command(file, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while finished_rounds(out) < 2 and process.poll() is None:
        time.sleep(0.05)
    began = time.monotonic()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_text().split("\0")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and words[0].endswith(f"/{program}"):
                os.kill(int(path.name), signal.SIGKILL)
    text, _ = process.communicate()
    said = [line for line in text.splitlines() if line.startswith("error:")]
    print(f"  exit {process.returncode} after {time.monotonic() - began:.1f} s: {said}", flush=True)
    last = json.loads((out / EVENTS).read_text().splitlines()[-1])
    if process.returncode == 0 or len(said) != 1 or last["event"] != "failed":
        sys.exit(f"the run did not report the kill once and record it: {text}\n{last}")
    subprocess.run(command(file, out), check=True, stdout=subprocess.DEVNULL)
    return out


def main() -> None:
    """Run undisturbed, then with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--kill-run", type=int, metavar="N", help="number of kills of the whole run")
    mode.add_argument(
        "--kill-workers", type=int, metavar="ROUNDS", help="number of rounds with worker kills"
    )
    mode.add_argument(
        "--kill-ray", choices=["gcs_server", "raylet"], help="process of Ray's to kill"
    )
    parser.add_argument(
        "--rounds", type=int, help="rounds for --kill-run and --kill-ray; by default 16 per kill"
    )
    parser.add_argument("--every", type=int, default=5, help="rounds between worker kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    arguments = parser.parse_args()
    rounds = arguments.kill_workers or arguments.rounds or 16 * (arguments.kill_run or 100)
    folder = Path(tempfile.mkdtemp(prefix="fedssl-soak-"))
    with Engine() as engine:
        engine.run(experiment_of(rounds, kind="serial"), [RunDirectory(folder / "whole")])
    print(f"{rounds} rounds, undisturbed: done; now with kills", flush=True)
    began = time.monotonic()
    if arguments.kill_workers:
        killed = kill_workers(rounds, arguments.every, arguments.seed, folder)
    elif arguments.kill_ray:
        killed = kill_ray(arguments.kill_ray, rounds, folder)
    else:
        killed = kill_run(arguments.kill_run, rounds, arguments.seed, folder)
    whole, now = bits(folder / "whole"), bits(killed)
    different = sorted(name for name in whole | now if whole.get(name) != now.get(name))
    if different:
        sys.exit(f"DIFFERENT: {', '.join(different)}; both runs are in {folder}")
    print(f"the same bits: {', '.join(whole)}; {time.monotonic() - began:.0f} s")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
