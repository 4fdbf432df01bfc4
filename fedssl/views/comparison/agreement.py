"""Checks whether lines may be compared: all need the same data, and two lines that share a seed need the same split."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedssl.record.run_path import PARTITION
from fedssl.views.comparison.gather import Line
from fedssl.views.run import Run, naming_damaged_files

FACTS = ("source", "class_names", "shape", "evaluated_on", "num_train")
"""Keys of ``data.json`` whose values do not depend on the seed; lines that are compared must agree in them."""

UNDECIDING = frozenset({"federation.sample"})
"""Settings of ``[data]`` and ``[federation]`` that cannot change which images a client holds."""


class Split(NamedTuple):
    """Fingerprints (SHA-256, hex) of what a seed may decide: the held-out images and each client's images."""

    held_out: str
    partition: str


def disagreements(lines: Sequence[Line]) -> tuple[str, ...]:
    """Return one sentence for each line whose data or split differs from an earlier line.

    Args:
        lines: The lines to compare. All must have the data of the first line, and for each seed the split of the first
            line that has the seed.

    Raises:
        InputError: A file that describes a run's data or split is missing or damaged.
    """
    first = next(iter(lines[0].runs.values()))
    splits = {
        (line.label, seed): _split_of(run) for line in lines for seed, run in line.runs.items()
    }
    said = []
    for line in lines:
        facts = _other_facts(line, first)
        if facts:
            said.append(f"{line.label}: {', '.join(facts)}{_settings(line, lines[0])}")
            continue  # other data has another split anyway
        said += [
            f"{line.label}: different {what} than {other.label} for {say_seeds(seeds)}{_settings(line, other)}"
            for what, other, seeds in _other_splits(line, lines, splits)
        ]
    return tuple(said)


def unpaired(lines: Sequence[Line]) -> tuple[str, ...]:
    """Return one sentence for each line that has no seed in common with the first line."""
    first = lines[0]
    return tuple(
        f"{line.label}: no seed in common with {first.label}, so there is no gain, and the splits cannot be compared"
        for line in lines[1:]
        if not line.runs.keys() & first.runs.keys()
    )


def _other_facts(line: Line, first: Run) -> list[str]:
    said = {}
    for run in line.runs.values():
        for fact in FACTS:
            own, wanted = run.data.get(fact), first.data.get(fact)
            if own == wanted:
                continue
            long = fact == "class_names"
            said[fact] = f"different {fact}" if long else f"{fact} is {own} and not {wanted}"
    return list(said.values())


def _other_splits(
    line: Line, lines: Sequence[Line], splits: Mapping[tuple[str, int], Split]
) -> list[tuple[str, Line, list[int]]]:
    """Return (what differs, the earlier line that it differs from, the seeds) for each way in which a line differs."""
    found: dict[tuple[str, str], tuple[Line, list[int]]] = {}
    for seed in line.runs:
        other = next(earlier for earlier in lines if seed in earlier.runs)
        own, wanted = splits[line.label, seed], splits[other.label, seed]
        held_out = ["held-out images"] if own.held_out != wanted.held_out else []
        split = ["split"] if own.partition != wanted.partition else []
        if what := " and ".join(held_out + split):
            found.setdefault((what, other.label), (other, []))[1].append(seed)
    return [(what, other, seeds) for (what, _), (other, seeds) in found.items()]


def _split_of(run: Run) -> Split:
    with naming_damaged_files(run.path / PARTITION), (run.path / PARTITION).open("rb") as file:
        partition = hashlib.file_digest(file, "sha256").hexdigest()
    return Split(str(run.data.get("held_out_sha256")), partition)


def say_seeds(seeds: Sequence[int]) -> str:
    """Return seeds as people say them: ``seed 0``, or ``seeds 0, 1``."""
    numbers = ", ".join(map(str, sorted(seeds)))
    return f"seed {numbers}" if len(seeds) == 1 else f"seeds {numbers}"


def _settings(line: Line, other: Line) -> str:
    """Say which settings of ``[data]`` and ``[federation]`` differ between two lines."""
    own, wanted = line.settings, other.settings
    changed = [
        f"{key} is {own.get(key, 'unset')} and not {wanted.get(key, 'unset')}"
        for key in sorted({*own, *wanted})
        if key.startswith(("data.", "federation.")) and key not in UNDECIDING
        if own.get(key) != wanted.get(key)
    ]
    return (
        f" ({'; '.join(changed) or 'although the settings of [data] and [federation] are equal'})"
    )
