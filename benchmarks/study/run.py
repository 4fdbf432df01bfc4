"""Run the study, several runs at a time; the same command again does what is left.

    python -m benchmarks.study.run fashion --root ../data --out runs/study
    python -m benchmarks.study.run fashion --seeds 1 --cells B-iid --list

A run that has begun goes on from its checkpoint. Runs have one thread each. Tables are made from the recorded runs by
``python -m benchmarks.study.collect`` and ``python -m benchmarks.study.pages``.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.study.plan import STUDIES, Unit, images_in, units


def command_of(unit: Unit, out: Path, root: Path | None) -> list[str]:
    """Return the arguments of ``fedssl`` for a run."""
    settings = [word for text in [*unit.settings, *images_in(root)] for word in ("--set", text)]
    return ["run", str(unit.file), *settings, "--out", str(out / unit.name), "--resume", "--plain"]


def main() -> None:
    """Read the command line, and run what is left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--root", type=Path, help="folder of the images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--cells", nargs="+", help="such as A-iid B-0.1; by default all")
    parser.add_argument("--lines", nargs="+", help="such as supervised fixmatch; by default all")
    parser.add_argument("--list", action="store_true", help="print the commands, and run nothing")
    args = parser.parse_args()
    planned = list(units(args.data, args.seeds))
    for option, known in (
        ("cells", {unit.cell.partition("/")[2] for unit in planned}),
        ("lines", {unit.line for unit in planned}),
    ):
        if unknown := set(getattr(args, option) or ()) - known:
            names = ", ".join(sorted(known))
            parser.error(f"--{option}: there is no {', '.join(sorted(unknown))}; there are {names}")
    left = [
        unit
        for unit in planned
        if args.cells is None or unit.cell.partition("/")[2] in args.cells
        if args.lines is None or unit.line in args.lines
        if not (args.out / unit.name / "summary.json").exists()
    ]
    if args.list:
        for unit in left:
            print("fedssl", shlex.join(command_of(unit, args.out, args.root)))
        return
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = sum(pool.map(lambda unit: _run(unit, args.out, args.root), left))
    print(f"{len(left)} runs, {failed} failed")
    sys.exit(failed > 0)


def _run(unit: Unit, out: Path, root: Path | None) -> bool:
    """Run a unit in a process of its own; return whether it failed."""
    log = out / f"{unit.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, "-m", "fedssl", *command_of(unit, out, root)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
            check=False,
        )
    said = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
    print(f"{unit.name}: {time.monotonic() - start:.0f} s, {' '.join(said)}", flush=True)
    return done.returncode != 0


if __name__ == "__main__":
    main()
