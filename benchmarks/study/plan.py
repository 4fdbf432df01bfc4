"""What the study runs: every line in every cell with every seed, as commands that a person could type."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parents[1] / "experiments"
DIGITS = "digits"
"""Its lines are files of experiments/digits, in one cell, and digits.toml names them."""

SKEWS = {
    "iid": ["federation.partition=iid"],
    "0.1": ["federation.partition.kind=dirichlet", "federation.partition.alpha=0.1"],
}
"""Settings of each skew: independent and identically distributed, and Dirichlet with alpha .1."""

WORDS = {
    "fashion": {"LABELS": "50", "SHARE": "0.04", "RATE": "0.06", "STEPS": "10"},
    "cifar10": {"LABELS": "400", "SHARE": "0.4", "RATE": "0.03", "STEPS": "40"},
}
"""What the words of protocols.toml stand for, by data set that has all cells: labels of each class, a share of the images of
two clients, the learning rate, and the server's steps after each round."""

DATA = (*WORDS, DIGITS)
"""The data sets that have tables."""

ORDERINGS = "orderings"
"""The runs of orderings.toml that belong to no table."""

STUDIES = (*DATA, ORDERINGS)
"""Everything that runs are made for."""

LABELS_ONLY = (
    "supervised",
    "supervised_strong",
    "supervised_by_labels",
    "supervised_strong_by_labels",
)
"""The lines without unlabeled images. All gains of a cell are measured against the best of them. Chance makes the best of
several lines look a little too good, and so every gain a little too small."""

BOUND = "all_labels"
"""The line that knows all labels."""

RECEIVED = "(received labels)"
"""What follows the title of a line whose clients take the labels of the model that they received."""

RESULTS = HERE / "results"
"""Folder of the files that the tables are made from."""


@dataclass(frozen=True)
class Unit:
    """One run of the study.

    Args:
        data: Data set; all but digits are base files of this folder. Or ``orderings``.
        protocol: Where the labels are: A, B or C, or ``all``, where every client knows all labels. Or a federation of
            orderings.toml.
        skew: How skewed the clients are: ``iid`` or ``0.1``, and ``0.5`` on digits; nothing for orderings.
        line: What is trained: a table of lines.toml, or a line of digits.toml or orderings.toml.
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
        return f"{self.data}/{self.protocol}{'-' if self.skew else ''}{self.skew}"

    @property
    def name(self) -> str:
        """Path of the run directory in the study's folder."""
        return f"{self.cell}/{self.line}-seed{self.seed}"

    @property
    def file(self) -> Path:
        """The experiment file below the settings."""
        if self.data == ORDERINGS:
            return EXPERIMENTS / federations()[self.protocol]["folder"] / f"{self.line}.toml"
        if self.data == DIGITS:
            return (
                EXPERIMENTS / DIGITS / f"{'supervised' if self.line == BOUND else self.line}.toml"
            )
        return HERE / f"{self.data}.toml"

    @property
    def settings(self) -> list[str]:
        """Settings as for ``--set``, laid over the file."""
        return [*self._cell_settings, *self.own_settings, f"name={self.line}", f"seed={self.seed}"]

    @property
    def own_settings(self) -> list[str]:
        """The settings that make the line, as for ``--set``."""
        if self.data in WORDS:
            line = _table("lines")[self.line]
            return [*line["set"], *line.get(self.protocol, [])]
        method = tomllib.loads(self.file.read_text(encoding="utf-8"))["method"]
        return [
            f"method.{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in method.items()
        ]

    @property
    def title(self) -> str:
        """How tables call the line."""
        if self.data == ORDERINGS:
            return str(_table(ORDERINGS)["titles"][self.line])
        if self.data == DIGITS:
            return str(_table(DIGITS)[self.line])
        title = str(_table("lines")[self.line]["title"])
        return f"{title} {RECEIVED}" if "method.labeler=received" in self.own_settings else title

    @property
    def _cell_settings(self) -> list[str]:
        if self.data == ORDERINGS:
            return ["engine.kind=serial", *federations()[self.protocol]["set"]]
        if self.data == DIGITS:
            alone = ["engine.kind=serial", "engine.fuse=off"]
            return [*alone, *(["federation.labels.per_class=all"] if self.line == BOUND else [])]
        protocol = _table("protocols")[self.protocol]
        where = [*protocol["set"], *protocol.get(self.skew, [])]
        for word, value in WORDS[self.data].items():
            where = [text.replace(word, value) for text in where]
        return [*SKEWS[self.skew], *where]


def images_in(root: Path | None) -> list[str]:
    """Return the setting, if any, that names the folder of the images, which is in torchvision's layout or holds Parquet files."""
    if root is None:
        return []
    return [f"data.source=hf:{root}" if any(root.glob("*.parquet")) else f"data.root={root}"]


def units(data: str, seeds: int) -> Iterator[Unit]:
    """Yield all runs of a study, seed by seed, so that an unfinished study has whole tables of fewer seeds."""
    for seed in range(seeds):
        if data == ORDERINGS:
            for name, federation in federations().items():
                yield from (Unit(data, name, "", line, seed) for line in federation["lines"])
            continue
        bounds = [("all", skew) for skew in SKEWS if data != DIGITS]
        for protocol, skew in [*bounds, *cells(data)]:
            for line in _lines_of(data, protocol):
                yield Unit(data, protocol, skew, line, seed)


def cells(data: str) -> list[tuple[str, str]]:
    """Return the protocol and the skew of each cell that has a table."""
    if data == DIGITS:
        return [("B", "0.5")]
    return [
        (protocol, skew) for skew in SKEWS for protocol in _table("protocols") if protocol != "all"
    ]


def lines_of(data: str, protocol: str) -> list[str]:
    """Return the names of the lines of a protocol's table, in its order; the bound is the last."""
    return list(dict.fromkeys([*_lines_of(data, protocol), BOUND]))


def federations() -> dict[str, dict[str, Any]]:
    """Return the federations of orderings.toml by their names."""
    return dict(_table(ORDERINGS)["federations"])


def claims() -> list[dict[str, Any]]:
    """Return the claims of orderings.toml: ``text``, ``paper``, and ``pairs`` such as ``"A/x > A/y"``."""
    return list(_table(ORDERINGS)["claims"])


def _lines_of(data: str, protocol: str) -> list[str]:
    if data == DIGITS:
        return list(_table(DIGITS))
    return [
        name
        for name, line in _table("lines").items()
        if protocol in line.get("protocols", ["A", "B", "C"])
    ]


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))
