"""Measure the seconds per round of all contenders with the same local step, in one run.

python -m benchmarks.engines [--workloads S,M,L,XL] [--contenders plain,fedssl-ray,...] [--rounds N] [--repeats 3]
                             [--workers 2] [--fashion-root FOLDER] [--json FILE]
python -m benchmarks.engines --check
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.check import check
from benchmarks.contenders import CONTENDERS
from benchmarks.processes import FEWEST_ROUNDS, LeftOut, Outcome, measure
from benchmarks.workloads import WORKLOADS
from fedssl.core.errors import InputError
from fedssl.core.machine import available_cores
from fedssl.data.cache import CACHE_VARIABLE
from fedssl.experiment.experiment import Experiment

REFERENCES = ("plain", "flower", "pfl")
"""All other contenders are compared with these."""
PACKAGES = ("fedssl", "torch", "flwr", "ray", "pfl", "blazefl")

Outcomes = dict[str, list[Outcome]]


def measure_in_turn(
    table: dict[str, Any], names: Sequence[str], rounds: int, workers: int, repeats: int
) -> tuple[Outcomes, list[str]]:
    """Run all contenders once, then all of them again, so that other load on the machine hits all contenders alike.

    Returns:
        Outcomes by contender, and the contenders that failed.
    """
    outcomes: Outcomes = {}
    out: set[str] = set()
    failed: list[str] = []
    for turn in range(repeats):
        for name in names:
            if name in out:
                continue
            print(f"  {name}, {turn + 1} of {repeats} ...", file=sys.stderr, flush=True)
            try:
                outcome = measure(name, table, rounds, workers)
            except LeftOut as reason:
                print(f"  {name} left out: {reason}", flush=True)
                out.add(name)
            except RuntimeError as error:
                print(f"  {error}", flush=True)
                out.add(name)
                failed.append(name)
            else:
                outcomes.setdefault(name, []).append(outcome)
    return outcomes, failed


def seconds_a_round(outcomes: Sequence[Outcome]) -> float:
    """Return the median over repeats of the median over rounds, in seconds."""
    return statistics.median(outcome.seconds_a_round for outcome in outcomes)


def print_table(outcomes: Mapping[str, list[Outcome]], workers: int) -> None:
    """Print one line per contender; a ratio says how many times as fast as a reference the contender is."""
    references = [name for name in REFERENCES if name in outcomes]
    ratios = "".join(f"{'x ' + name:>10}" for name in references)
    print(
        f"  {'contender':18}{'workers':>8}{'s/round':>10}{'least - most':>18}{ratios}"
        f"{'1st round s':>13}{'driver MiB':>12}{'all MiB':>9}{'accuracy':>10}"
    )
    for name, own in outcomes.items():
        seconds = [outcome.seconds_a_round for outcome in own]
        median = seconds_a_round(own)
        ratios = "".join(
            f"{seconds_a_round(outcomes[reference]) / median:10.2f}" for reference in references
        )
        print(
            f"  {name:18}{workers if CONTENDERS[name].parallel else 1:8}{median:10.4f}"
            f"{f'{min(seconds):.4f} - {max(seconds):.4f}':>18}{ratios}"
            f"{statistics.median(outcome.first for outcome in own):13.1f}"
            f"{max(outcome.driver_mib for outcome in own):12.0f}"
            f"{max(outcome.all_mib for outcome in own):9.0f}"
            f"{100 * own[-1].accuracy:9.1f}%",
            flush=True,
        )


def environment() -> dict[str, Any]:
    """Return what the figures depend on beside the code: versions, machine and cores."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": available_cores(),
        "packages": versions,
    }


def main() -> None:
    """Measure, print one table per workload, and write all measurements to a file if --json is given."""
    given = _arguments()
    found: dict[str, Any] = {"environment": environment(), "workloads": {}}
    print(json.dumps(found["environment"]))
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = str(Path(folder) / "cache")
        if given.check:
            sys.exit(0 if check(Path(folder), given.contenders, given.workers) else 1)
        for name in given.workloads:
            workload = WORKLOADS[name]
            table = workload.table(Path(folder), given.fashion_root)
            try:
                Experiment.from_dict(table).data.prepare()
            except InputError as error:
                print(f"{name} left out: {error}; see --fashion-root", flush=True)
                continue
            rounds = given.rounds or workload.rounds
            print(
                f"{name}: {workload.title}, {workload.sample:,} of {workload.clients:,} clients a round, "
                f"{rounds} rounds, {given.repeats} repeats",
                flush=True,
            )
            outcomes, lost = measure_in_turn(
                table, given.contenders, rounds, given.workers, given.repeats
            )
            failed += lost
            print_table(outcomes, given.workers)
            found["workloads"][name] = {k: [asdict(o) for o in own] for k, own in outcomes.items()}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    sys.exit(1 if failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--contenders", type=_names(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, help="rounds, instead of each workload's own number")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fashion-root", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument(
        "--check", action="store_true", help="only check that all contenders do the same work"
    )
    given = parser.parse_args()
    if given.rounds is not None and given.rounds < FEWEST_ROUNDS:
        parser.error(
            f"--rounds: at least {FEWEST_ROUNDS}, because the first and the last do not count"
        )
    return given


def _names(known: Mapping[str, object]) -> Any:
    """Return a parser for lists of known names, separated by commas."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {name!r}; choose from {list(known)}")
        return names

    return read


if __name__ == "__main__":
    main()
