"""Keep the study's recorded runs in the repository, and put them back where the study goes on or is compared.

    python -m benchmarks.study.records keep fashion --out runs/study
    python -m benchmarks.study.records restore fashion --out runs/study

``results/records`` has an archive for each cell and seed: all files of its runs but weights, clients.csv and the page. The predictions of the final models
are among them, so that ``fedssl compare`` of the restored runs needs neither the images nor the machine that the runs were made on.
"""

import argparse
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.study.plan import RESULTS, STUDIES, Unit, units
from fedssl.record.run_path import CLIENTS, EMA, MODEL, PARTITION, REPORT, SUMMARY
from fedssl.views.closer_look import EVALUATION, closer_look
from fedssl.views.run import Run

RECORDS = RESULTS / "records"
"""Folder of the archives."""

LEFT_OUT = frozenset({MODEL, EMA, CLIENTS, REPORT})
"""Files of a run that no archive holds: they make nearly all of its size, and no table needs them."""

LARGE = frozenset({EVALUATION, PARTITION})
"""The large files of an archive."""


def keep(data: str, out: Path, seeds: int) -> None:
    """Write the archive of each cell and seed that has finished runs which its archive lacks; images must be at hand."""
    for archive, own in _by_archive(data, seeds):
        finished = [unit for unit in own if (out / unit.name / SUMMARY).exists()]
        if {unit.name for unit in finished} <= summaries(archive).keys():
            continue
        for unit in finished:
            closer_look(Run(out / unit.name))  # which records the predictions
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:xz", preset=9) as file:
            # Like files stand together, so that what they have in common is written once.
            for path, name in sorted(_files(finished, out), key=_place):
                file.add(path, name, filter=_plain)
        print(f"{archive}: {len(finished)} of {len(own)} runs, {archive.stat().st_size:,} bytes")


def restore(data: str, out: Path, seeds: int) -> None:
    """Put every kept run where the study would record it; what is there already stays."""
    for archive, own in _by_archive(data, seeds):
        known = summaries(archive)
        missing = {
            unit.name for unit in own if unit.name in known and not (out / unit.name).exists()
        }
        if not missing:
            continue
        with tarfile.open(archive) as file:
            members = [each for each in file if str(Path(each.name).parent) in missing]
            file.extractall(out, members, filter="data")
        print(f"{archive}: {len(missing)} runs are back in {out}")


def _by_archive(data: str, seeds: int) -> Iterator[tuple[Path, list[Unit]]]:
    """Yield each archive of a data set, and the runs that it is for."""
    found = defaultdict(list)
    for unit in units(data, seeds):
        found[RECORDS / f"{unit.cell}-seed{unit.seed}.tar.xz"].append(unit)
    yield from found.items()


def summaries(archive: Path) -> dict[str, dict[str, Any]]:
    """Return the summary of each run that an archive holds, by the run's name; nothing if there is no archive."""
    found: dict[str, dict[str, Any]] = {}
    if not archive.exists():
        return found
    with tarfile.open(archive) as file:
        for member in file:
            path, content = Path(member.name), file.extractfile(member)
            if path.name in LARGE:
                break
            if path.name == SUMMARY and content is not None:
                found[str(path.parent)] = json.loads(content.read())
    return found


def _files(finished: list[Unit], out: Path) -> Iterator[tuple[Path, str]]:
    """Yield the path of each file to keep, and its name in the archive."""
    for unit in finished:
        for path in (out / unit.name).iterdir():
            if path.is_file() and path.name not in LEFT_OUT and not path.name.startswith("."):
                yield path, f"{unit.name}/{path.name}"


def _place(file: tuple[Path, str]) -> tuple[bool, str, str]:
    """Return what files are sorted by: large ones are the last, so that nobody has to read them for a summary."""
    path, name = file
    return path.name in LARGE, path.name, name


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member without its owner and time, so that the same runs are the same archive."""
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    info.mode = 0o644
    return info


def main() -> None:
    """Read the command line, and keep or restore."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("keep", "restore"))
    parser.add_argument("data", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    (keep if args.what == "keep" else restore)(args.data, args.out, args.seeds)


if __name__ == "__main__":
    main()
