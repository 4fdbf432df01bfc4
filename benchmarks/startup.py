"""Measure how long a user waits: for help, a list, a check, the end of the first round, and the end of a run.

Every command runs in fresh processes, and every figure is a median over --repeats. CPU seconds are the sum over all
processes that a command starts, Ray's included. With --beside, another checkout is measured in turn with this one.

    python benchmarks/startup.py [--repeats 5] [--beside FOLDER] [--profile]

--profile prints the slowest imports of a driver and of a worker instead; a module's time includes its own imports.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parents[1]
FILE = "experiments/digits/fixmatch.toml"
RUN = ("run", FILE, "--plain", "--set", "rounds=2", "--workers", "2")
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "list methods": ("list", "methods"),
    "validate": ("validate", FILE),
    "run, serial": (*RUN, "--engine", "serial"),
    "run, Ray, 2 workers": (*RUN, "--engine", "ray"),
}
ROUND = b"round 1/"
"""The line that reports the first round starts with this."""

IMPORTS = 15
DRIVER = ("-m", "fedssl", *RUN, "--engine", "serial")
WORKER = """
import fedssl.engine.ray.actor
from fedssl.core.processes import quick_imports
with quick_imports():
    import fedssl.clients.client_app, fedssl.engine.worker
"""


class Spent(NamedTuple):
    """Time of a process and its descendants, in seconds; `first_round` is NaN if the command runs no round."""

    first_round: float
    wall: float
    cpu: float


class CpuMeter:
    """Add up the CPU time of all processes that carry a mark in their environment, orphans included (Linux only).

    The meter reads every process each 20 ms, so it misses the last moments of each process.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark.encode()
        self._seconds: dict[tuple[str, str], float] = {}
        self._strangers: set[tuple[str, str]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> float:
        """Stop watching, and return the CPU time in seconds."""
        self._over.set()
        self._thread.join()
        return sum(self._seconds.values())

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            for process in Path("/proc").iterdir():
                if process.name.isdecimal():
                    try:
                        self._look_at(process)
                    except OSError:
                        continue  # the process has just ended

    def _look_at(self, process: Path) -> None:
        stat = (process / "stat").read_text().rpartition(")")[2].split()
        name = (process.name, stat[19])  # with the start time: numbers of processes are reused
        if name in self._strangers:
            return
        if name not in self._seconds:
            environment = (process / "environ").read_bytes()
            if self._mark not in environment:
                if environment:  # empty for a moment, while a process starts a new program
                    self._strangers.add(name)
                return
        self._seconds[name] = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def run(arguments: tuple[str, ...], checkout: Path) -> Spent:
    """Run one command once, and return its times."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments[0] == "run":
            arguments = (*arguments, "--out", f"{folder}/run")
        mark = f"FEDSSL_STARTUP={os.getpid()}.{time.monotonic_ns()}"
        environment = os.environ | {"PYTHONPATH": str(checkout)} | dict([mark.split("=")])
        meter = CpuMeter(mark)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "fedssl", *arguments],
            cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        said, first_round = [], float("nan")
        for line in process.stdout:
            said.append(line)
            if line.startswith(ROUND):
                first_round = time.perf_counter() - began
        process.wait()
        wall = time.perf_counter() - began
        spent = Spent(first_round, wall, meter.stop())
    if process.returncode:
        raise SystemExit(b"".join(said).decode())
    return spent


def measure(checkouts: list[Path], repeats: int) -> None:
    """Measure every command, and print one line per command and checkout."""
    print(f"{'':22} {'first round s':>14} {'to the prompt s':>16} {'CPU s':>7}")
    for name, arguments in COMMANDS.items():
        found: dict[Path, list[Spent]] = {checkout: [] for checkout in checkouts}
        for turn in range(repeats + 1):
            for checkout in checkouts:
                spent = run(arguments, checkout)
                if turn:  # the first turn fills the disk's cache
                    found[checkout].append(spent)
        for checkout, runs in found.items():
            median = Spent(*map(statistics.median, zip(*runs, strict=True)))
            first = "" if median.first_round != median.first_round else f"{median.first_round:.2f}"
            where = f"  {checkout}" if len(checkouts) > 1 else ""
            print(f"{name:22} {first:>14} {median.wall:16.2f} {median.cpu:7.2f}{where}", flush=True)


def profile(name: str, arguments: tuple[str, ...]) -> None:
    """Print the modules with the slowest imports; a module's time includes the modules that it imports."""
    with tempfile.TemporaryDirectory() as folder:
        out = ("--out", f"{folder}/run") if "run" in arguments else ()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *arguments, *out],
            cwd=HERE, capture_output=True, text=True, check=True,
        )  # fmt: skip
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time")]
    took = {module.strip(): int(total) for _, total, module in lines if total.strip().isdecimal()}
    print(f"{name}: {len(took)} modules")
    for module in sorted(took, key=took.__getitem__, reverse=True)[:IMPORTS]:
        print(f"  {took[module] / 1e3:7.0f} ms  {module}")


def main() -> None:
    """Measure the commands, or profile the imports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", type=Path, help="another checkout to measure, too")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.profile:
        profile("driver", DRIVER)
        profile("worker", ("-c", WORKER))
        return
    beside = [] if arguments.beside is None else [arguments.beside.resolve()]
    measure([*beside, HERE], arguments.repeats)


if __name__ == "__main__":
    main()
