"""What the study runs: every line in every cell with every seed, as commands that a person could type."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SKEWS = {
    "iid": ["federation.partition=iid"],
    "0.1": ["federation.partition.kind=dirichlet", "federation.partition.alpha=0.1"],
}
"""Settings of each skew: independent and identically distributed, and Dirichlet with alpha .1."""

LABELS = {"fashion": 50, "cifar10": 400}
"""Labels of each class, by data set."""


@dataclass(frozen=True)
class Unit:
    """One run of the study.

    Args:
        data: Data set: the name of a base file of this folder.
        protocol: Where the labels are: A, B or C, or ``all``, where every client knows all labels.
        skew: How skewed the clients are: ``iid`` or ``0.1``.
        line: What is trained: a table of lines.toml.
        seed: Seed of the run.
    """

    data: str
    protocol: str
    skew: str
    line: str
    seed: int

    @property
    def cell(self) -> str:
        """Name of the cell, which is that of the folder of its runs."""
        return f"{self.data}/{self.protocol}-{self.skew}"

    @property
    def name(self) -> str:
        """Path of the run directory in the study's folder."""
        return f"{self.cell}/{self.line}-seed{self.seed}"

    @property
    def settings(self) -> list[str]:
        """Settings as for ``--set``, laid over the base file."""
        protocol, line = _table("protocols")[self.protocol], _table("lines")[self.line]
        where = [text.replace("LABELS", str(LABELS[self.data])) for text in protocol["set"]]
        own = [*line["set"], *line.get(self.protocol, [])]
        return [*SKEWS[self.skew], *where, *own, f"name={self.line}", f"seed={self.seed}"]

    @property
    def file(self) -> Path:
        """The base file."""
        return HERE / f"{self.data}.toml"


def units(data: str, seeds: int) -> Iterator[Unit]:
    """Yield all runs of a data set, seed by seed, so that an unfinished study has whole tables of fewer seeds."""
    for seed in range(seeds):
        for skew in SKEWS:
            for protocol in _table("protocols"):
                for line in lines_of(protocol):
                    yield Unit(data, protocol, skew, line, seed)


def lines_of(protocol: str) -> list[str]:
    """Return the names of a protocol's lines, in the order of the tables."""
    return [
        name
        for name, line in _table("lines").items()
        if protocol in line.get("protocols", ["A", "B", "C"])
    ]


def title_of(line: str) -> str:
    """Return how tables call a line."""
    return str(_table("lines")[line]["title"])


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))
