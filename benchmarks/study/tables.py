"""Make the study's tables from its recorded runs, and docs/results.md from its tables.

    python -m benchmarks.study.tables fashion --out runs/study    # reads runs, writes results/fashion*.csv
    python -m benchmarks.study.tables fashion --show              # prints the tables of docs/results.md from these files

``results/fashion_runs.csv`` has a row for each run, ``results/fashion_lines.csv`` a row for each line of each cell, as `fedssl compare`
has them, ``results/fashion_yardsticks.csv`` the classical classifiers, and ``results/fashion_cells.csv`` what each federation is like.
"""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.study.plan import BOUND, DATA, HERE, Unit, cells, lines_of, units
from fedssl.app.advice.situation import situation_of
from fedssl.clients.local_data import simulated_federation
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.run import Run

RESULTS = HERE / "results"
BASELINE = "supervised_strong"
RUN_COLUMNS = ["protocol", "skew", "line", "seed", "ema_accuracy", "server_accuracy"]
RUN_COLUMNS += ["pseudo_label_accuracy", "pseudo_label_coverage", "megabytes", "seconds"]
LINE_COLUMNS = ["protocol", "skew", "line", "seeds", "ema_accuracy", "ema_accuracy_std", "gain"]
LINE_COLUMNS += ["gain_ci95_low", "gain_ci95_high", "gap_closed", "p", "letters", "seconds"]


def collect(data: str, out: Path, seeds: int) -> None:
    """Write the tables of all cells that have a baseline, from the runs that are finished."""
    runs, lines, yardsticks, situations = [], [], [], []
    for protocol, skew in cells(data):
        own = [
            out / unit.name
            for unit in units(data, seeds)
            if unit.skew == skew and unit.protocol in (protocol, "all")
            if (out / unit.name / "summary.json").exists()
        ]
        first = out / Unit(data, protocol, skew, BASELINE, 0).name
        if first not in own:
            continue
        found = Comparison.of_runs(
            [first, *own],
            force=True,
            by_data=False,
            bound=BOUND if any(BOUND in path.name for path in own) else None,
            yardsticks=protocol != "C",
        )
        where = {"protocol": protocol, "skew": skew}
        runs.append(_runs(found).assign(**where))
        lines.append(_lines(found).assign(**where))
        situations.append(_situation(first) | where)
        if len(found.yardsticks):
            yardsticks.append(found.yardsticks.drop(columns="baseline").assign(**where))
    RESULTS.mkdir(exist_ok=True)
    tables = (("runs", runs, RUN_COLUMNS), ("lines", lines, LINE_COLUMNS))
    for name, parts, columns in tables:
        pd.concat(parts)[columns].round(6).to_csv(RESULTS / f"{data}_{name}.csv", index=False)
    pd.DataFrame(situations).round(6).to_csv(RESULTS / f"{data}_cells.csv", index=False)
    pd.concat(yardsticks).round(6).to_csv(RESULTS / f"{data}_yardsticks.csv", index=False)


def _situation(run: Path) -> dict[str, Any]:
    """Return what the federation of a run is like."""
    experiment = Run(run).experiment
    situation = situation_of(simulated_federation(experiment))
    return dataclasses.asdict(situation)


def _runs(found: Comparison) -> pd.DataFrame:
    megabytes = (found.runs["bytes_up"] + found.runs["bytes_down"]) / 1e6
    return found.runs.assign(line=found.runs["name"], megabytes=megabytes)


def _lines(found: Comparison) -> pd.DataFrame:
    pairs = found.verdicts.pairs
    p = dict(zip(pairs["label"], pairs["p"], strict=True)) if len(pairs) else {}
    lines = found.lines.assign(
        line=found.lines["name"],
        p=found.lines["label"].map(p),
        letters=found.lines["label"].map(found.verdicts.letters),
    )
    return lines if "gap_closed" in lines else lines.assign(gap_closed=math.nan)


def tables(data: str) -> dict[str, str]:
    """Return the tables of docs/results.md as Markdown by their names, made from the files of results alone."""
    lines = pd.read_csv(RESULTS / f"{data}_lines.csv", dtype={"skew": str})
    yardsticks = pd.read_csv(RESULTS / f"{data}_yardsticks.csv", dtype={"skew": str})
    found = {}
    for protocol in dict.fromkeys(lines["protocol"]):
        own = lines[lines["protocol"] == protocol]
        skews = [skew for where, skew in cells(data) if where == protocol]
        rows = [_row(data, line, own, skews) for line in lines_of(data, protocol)]
        for name, values in yardsticks[yardsticks["protocol"] == protocol].groupby(
            "classifier", sort=False
        ):
            rows.append(_yardstick(str(name), values, skews))
        head = [
            "",
            *(f"{_skew(skew)}: {c}" for skew in skews for c in ("EMA", "gain", "gap", "like")),
        ]
        found[f"{data}-{protocol}"] = "\n".join(
            [_markdown(head), _markdown(["---"] * len(head)), *(_markdown(r) for r in rows if r)]
        )
    return found


def _row(data: str, line: str, lines: pd.DataFrame, skews: list[str]) -> list[str]:
    cells = [Unit(data, lines["protocol"].iloc[0], "", line, 0).title]
    for skew in skews:
        own = lines[(lines["line"] == line) & (lines["skew"] == skew)].to_dict("records")
        cells += _cells(own[0], line == BASELINE) if own else ["-"] * 4
    return cells if any(cell != "-" for cell in cells[1:]) else []


def _cells(row: dict[Any, Any], is_baseline: bool) -> list[str]:
    spread = (
        "" if math.isnan(row["ema_accuracy_std"]) else f" ± {row['ema_accuracy_std'] * 100:.1f}"
    )
    low, high = row["gain_ci95_low"], row["gain_ci95_high"]
    interval = "" if math.isnan(low) else f" ({low * 100:+.1f} to {high * 100:+.1f})"
    gap = "-" if math.isnan(row["gap_closed"]) else f"{row['gap_closed'] * 100:.0f} %"
    letters = row["letters"] if isinstance(row["letters"], str) else "-"
    gain = "" if is_baseline else f"{row['gain'] * 100:+.1f}{interval}"
    return [f"{row['ema_accuracy'] * 100:.1f}{spread}", gain, gap, letters]


def _yardstick(name: str, values: pd.DataFrame, skews: list[str]) -> list[str]:
    cells = [f"{name}, pooled"]
    for skew in skews:
        own = values[values["skew"] == skew]["accuracy"] * 100
        spread = f" ± {own.std(ddof=1):.1f}" if len(own) > 1 else ""
        cells += [f"{own.mean():.1f}{spread}" if len(own) else "-", "", "", ""]
    return cells


def _skew(skew: str) -> str:
    return "IID" if skew == "iid" else f"Dir({skew.removeprefix('0')})"


def _markdown(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Read the command line, and write or show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show:
        collect(args.data, args.out, args.seeds)
    for name, text in tables(args.data).items():
        print(f"<!-- {name} -->\n{text}\n")


if __name__ == "__main__":
    main()
