"""Measure what orderings.toml claims: ``python -m benchmarks.study.orderings --out runs/study`` writes results/orderings.csv.

A row is a pair of lines: the difference of their accuracies seed by seed, its mean, and its 95 % interval as `fedssl compare` has it. The runs are those of
``python -m benchmarks.study.run orderings`` and of the study's cells; a pair of which fewer than three seeds are finished has no interval and no row.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.study.plan import ORDERINGS, RESULTS, STUDIES, Unit, claims, federations, units
from benchmarks.study.tables import IMAGES, markdown, name_of_skew
from fedssl.record.run_path import SUMMARY
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.statistics import FEWEST_SEEDS

FILE = RESULTS / "orderings.csv"

HEAD = ["claim", "federation", "first", "second", "seeds", "difference (95 %)", "seen"]
"""Columns of the table: a claim with its paper, where its pair was measured, both lines, and by how many points the first is above the second."""


def lines_of_pair(pair: str) -> tuple[Unit, Unit]:
    """Return both lines of a pair such as ``"fashion/A-iid/fl2 > fashion/A-iid/semifl"``, each as its run with seed 0.

    Raises:
        KeyError: The study has no such line.
    """
    first, second = (_first_runs()[f"{name.strip()}-seed0"] for name in pair.split(">"))
    return first, second


@cache
def _first_runs() -> dict[str, Unit]:
    return {unit.name: unit for data in STUDIES for unit in units(data, 1)}


def measure(out: Path, seeds: int) -> pd.DataFrame:
    """Return a row for each pair of which at least three seeds are finished.

    Args:
        out: Folder of the study's runs.
        seeds: Number of seeds to look for.
    """
    rows = []
    for claim in claims():
        for pair in claim["pairs"]:
            first, second = lines_of_pair(pair)
            both = [
                (above, below)
                for above, below in zip(
                    _runs(first, out, seeds), _runs(second, out, seeds), strict=True
                )
                if above and below
            ]
            if len(both) >= FEWEST_SEEDS:
                rows.append({"text": claim["text"], "pair": pair} | _difference(both))
    return pd.DataFrame(rows)


def _runs(unit: Unit, out: Path, seeds: int) -> Iterator[Path | None]:
    """Yield the run of each seed of a line; None if it is not finished."""
    for seed in range(seeds):
        path = out / replace(unit, seed=seed).name
        yield path if (path / SUMMARY).exists() else None


def _difference(both: list[tuple[Path, Path]]) -> dict[str, Any]:
    """Return by how much the first runs are above the second ones of the same seeds."""
    paths = [below for _, below in both] + [above for above, _ in both]
    found = Comparison.of_runs(paths, force=True, by_data=False)
    line = found.lines.iloc[1]
    return {
        "seeds": int(line["paired_seeds"]),
        "difference": line["gain"],
        "low": line["gain_ci95_low"],
        "high": line["gain_ci95_high"],
    }


def table() -> str:
    """Return the table of docs/results.md as Markdown, made from the file of results alone."""
    found = pd.read_csv(FILE)
    papers = {claim["text"]: claim["paper"] for claim in claims()}
    rows, last = [HEAD, ["---"] * len(HEAD)], ""
    for row in found.to_dict("records"):
        first, second = lines_of_pair(row["pair"])
        text = "" if row["text"] == last else f"{row['text']} ({papers[row['text']]})"
        last = row["text"]
        one, other, where = first.title, second.title, _where(first)
        if first.cell != second.cell:  # each line has a federation of its own
            one, other, where = f"{one}: {where}", f"{other}: {_where(second)}", ""
        low, high = row["low"] * 100, row["high"] * 100
        seen = "above" if low > 0 else "below" if high < 0 else "not told apart"
        difference = f"{row['difference'] * 100:+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append([text, where, one, other, str(row["seeds"]), difference, seen])
    return "\n".join(markdown(row) for row in rows)


def _where(unit: Unit) -> str:
    if unit.data == ORDERINGS:
        return str(federations()[unit.protocol]["title"])
    return f"{IMAGES[unit.data]}, {unit.protocol}, {name_of_skew(unit.skew)}"


def main() -> None:
    """Read the command line, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    found = measure(args.out, args.seeds)
    before = set(pd.read_csv(FILE)["pair"]) if FILE.exists() else set[str]()
    planned = {pair for claim in claims() for pair in claim["pairs"]}
    if lost := (before & planned) - set(found.get("pair", [])):
        sys.exit(
            f"{args.out} lacks runs of pairs that {FILE.name} has: {', '.join(sorted(lost))}; "
            f"`python -m benchmarks.study.records restore {ORDERINGS}` puts the kept ones back"
        )
    if found.empty:
        sys.exit(f"{args.out} has three seeds of no pair")
    found.round(6).to_csv(FILE, index=False)


if __name__ == "__main__":
    main()
