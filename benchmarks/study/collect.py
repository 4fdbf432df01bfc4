"""Make the study's files of results from its recorded runs: ``python -m benchmarks.study.collect fashion --out runs/study``.

With ``--cells``, the rows of all other cells stay as they are, so their runs need not be at hand.

``results/fashion_runs.csv`` has a row for each run, ``results/fashion_lines.csv`` a row for each line of each cell, and
``results/fashion_curves.csv`` a row for each evaluated round of it, as `fedssl compare` has them, ``results/fashion_yardsticks.csv`` the classical classifiers, and ``results/fashion_cells.csv`` what each federation is like.
``python -m benchmarks.study.pages`` makes the tables of the pages, and the evidence of ``fedssl advise``, from these files.
"""

import argparse
import dataclasses
import itertools
import math
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.study.plan import (
    BOUND,
    DATA,
    LABELS_ONLY,
    RESULTS,
    Unit,
    cells,
    images_in,
    units,
)
from fedssl.app.advice.situation import situation_of
from fedssl.clients.local_data import simulated_federation
from fedssl.experiment.experiment import Experiment
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.yardstick_table import measure
from fedssl.views.run import Run

RUN_COLUMNS = ["protocol", "skew", "line", "seed", "ema_accuracy", "server_accuracy"]
RUN_COLUMNS += ["pseudo_label_accuracy", "pseudo_label_coverage", "megabytes", "seconds"]
LINE_COLUMNS = ["protocol", "skew", "line", "seeds", "server_accuracy", "server_accuracy_std"]
LINE_COLUMNS += [
    "ema_accuracy",
    "ema_accuracy_std",
    "gain",
    "pseudo_label_accuracy",
    "pseudo_label_coverage",
]
CURVE_COLUMNS = ["protocol", "skew", "line", "seeds", "round", "ema_accuracy"]
CURVE_COLUMNS += ["ema_accuracy_low", "ema_accuracy_high"]
LINE_COLUMNS += ["baseline", "gain_ci95_low", "gain_ci95_high", "gap_closed", "letters", "seconds"]


def collect(
    data: str, out: Path, seeds: int, measured: Collection[tuple[str, str]] | None = None
) -> None:
    """Write the tables of all cells that have a line with labels only, from the runs that are finished.

    Args:
        data: Data set.
        out: Folder of the recorded runs.
        seeds: Seeds 0 to ``seeds - 1`` are read.
        measured: Protocol and skew of each cell that is measured; the rows of the others stay as they are. By default all.

    Raises:
        SystemExit: A run whose row is in the files is not at hand, or no cell has a line with labels only. Nothing is
            written then.
    """
    runs, lines, curves, situations = [], [], [], []
    for protocol, skew in cells(data) if measured is None else measured:
        own: dict[str, list[Path]] = {}
        for unit in units(data, seeds):
            is_in_cell = unit.skew == skew and unit.protocol in (protocol, "all")
            if is_in_cell and (out / unit.name / "summary.json").exists():
                own.setdefault(unit.line, []).append(out / unit.name)
        baseline = _baseline(own)
        if baseline is None:
            continue
        first = own[baseline][0]
        found = Comparison.of_runs(
            [first, *itertools.chain(*own.values())],
            force=True,
            by_data=False,
            bound=BOUND if BOUND in own else None,
        )
        where = {"protocol": protocol, "skew": skew}
        runs.append(_runs(found).assign(**where))
        lines.append(_lines(found).assign(**where, baseline=baseline))
        curves.append(_curves(found).assign(**where))
        situations.append(_situation(first) | where)
    if not runs:
        raise SystemExit(f"{out} has no finished run with labels only of these cells")
    if lost := _lost(data, pd.concat(runs), cells(data) if measured is None else measured):
        raise SystemExit(
            f"{len(lost)} runs of the files of results are not in {out}, or --seeds leaves them out; the first is "
            f"{'/'.join(map(str, lost[0]))}. `python -m benchmarks.study.records restore {data}` brings those back that are "
            "kept, and --cells names the cells to measure. Nothing was written."
        )
    RESULTS.mkdir(exist_ok=True)
    tables = (
        ("runs", runs, RUN_COLUMNS),
        ("lines", lines, LINE_COLUMNS),
        ("curves", curves, CURVE_COLUMNS),
    )
    for name, parts, columns in tables:
        _write(data, name, pd.concat(parts)[columns], keep=measured is not None)
    _write(data, "cells", pd.DataFrame(situations), keep=measured is not None)


def _lost(
    data: str, made: pd.DataFrame, measured: Collection[tuple[str, str]]
) -> list[tuple[Any, ...]]:
    """Return protocol, skew, line and seed of each row of the measured cells that the file of runs has and the new one would not have."""
    file, keys = RESULTS / f"{data}_runs.csv", ["protocol", "skew", "line", "seed"]
    if not file.exists():
        return []
    known = pd.read_csv(file, dtype={"skew": str})[keys].itertuples(index=False, name=None)
    new = set(made[keys].itertuples(index=False, name=None))
    return [row for row in known if row[:2] in measured and row not in new]


def _write(data: str, name: str, made: pd.DataFrame, *, keep: bool) -> None:
    """Write a file of results, cell by cell in the order of the plan; with ``keep``, the rows that it has of other cells stay."""
    file, where = RESULTS / f"{data}_{name}.csv", ["protocol", "skew"]
    made = made.round(6)
    if keep and file.exists():
        known = pd.read_csv(file, dtype={"skew": str})
        is_made = known.set_index(where).index.isin(made.set_index(where).index)
        made = pd.concat([known[~is_made], made])
    order = {place: number for number, place in enumerate(cells(data))}
    places = made.set_index(where).index.map(order)
    made.iloc[places.argsort(kind="stable")].to_csv(file, index=False)


def measure_yardsticks(data: str, root: Path | None, seeds: int) -> None:
    """Write what the classical classifiers make of the labels of the first cell, all images in one place; it takes minutes a seed."""
    named = [Unit(data, *cells(data)[0], LABELS_ONLY[0], seed) for seed in range(seeds)]
    experiments = [Experiment.load(unit.file, [*unit.settings, *images_in(root)]) for unit in named]
    measured = measure((each.seed, simulated_federation(each)) for each in experiments)
    RESULTS.mkdir(exist_ok=True)
    measured.round(6).to_csv(RESULTS / f"{data}_yardsticks.csv", index=False)


def _baseline(runs: Mapping[str, list[Path]]) -> str | None:
    """Return the line of a cell that is best with labels only, of those with the most finished runs; None if there is none.

    Args:
        runs: The finished runs of the cell, by line.
    """
    known = [line for line in LABELS_ONLY if line in runs]
    most = max((len(runs[line]) for line in known), default=0)
    means = {
        line: statistics.mean(Run(path).summary["ema_accuracy"] for path in runs[line])
        for line in known
        if len(runs[line]) == most
    }
    return max(means, key=means.__getitem__, default=None)


def _situation(run: Path) -> dict[str, Any]:
    """Return what the federation of a run is like."""
    experiment = Run(run).experiment
    situation = situation_of(simulated_federation(experiment))
    return dataclasses.asdict(situation)


def _runs(found: Comparison) -> pd.DataFrame:
    megabytes = (found.runs["bytes_up"] + found.runs["bytes_down"]) / 1e6
    return found.runs.assign(line=found.runs["name"], megabytes=megabytes)


def _lines(found: Comparison) -> pd.DataFrame:
    lines = found.lines.assign(
        line=found.lines["name"],
        letters=found.lines["label"].map(found.verdicts.letters),
    )
    return lines if "gap_closed" in lines else lines.assign(gap_closed=math.nan)


def _curves(found: Comparison) -> pd.DataFrame:
    names = dict(zip(found.lines["label"], found.lines["name"], strict=True))
    known = found.curves.dropna(subset=["ema_accuracy"])
    return known.assign(line=known["label"].map(names))


def main() -> None:
    """Read the command line, and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", nargs="+", help="such as A-iid B-0.1; by default all")
    parser.add_argument(
        "--yardsticks", action="store_true", help="only measure the yardsticks, without any run"
    )
    parser.add_argument("--root", type=Path, help="folder of the yardsticks' images")
    args = parser.parse_args()
    if args.yardsticks:
        measure_yardsticks(args.data, args.root, args.seeds)
        return
    known = {"-".join(place): place for place in cells(args.data)}
    if unknown := set(args.cells or ()) - known.keys():
        parser.error(
            f"--cells: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    named = None if args.cells is None else [known[name] for name in args.cells]
    collect(args.data, args.out, args.seeds, named)


if __name__ == "__main__":
    main()
