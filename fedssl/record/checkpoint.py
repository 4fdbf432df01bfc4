"""Checkpoints of a run: each is written whole or not at all and is verified when read; the last two stay on disk.

A checkpoint is a folder ``checkpoint/round-000010``. It holds safetensors files, and a ``manifest.json`` with the size
and checksum of each file and the lengths of the record's files at that time. What clients keep lies next to these
folders, in packs that checkpoints share. No file contains code: nothing is unpickled.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors.numpy import load

from fedssl.core.arrays import NamedArrays, as_safetensors
from fedssl.core.errors import InputError
from fedssl.core.files import PARTIAL, sync_folder, write_synced
from fedssl.record.global_model import GlobalModel
from fedssl.record.lines import read_rounds
from fedssl.record.packs import (
    Index,
    PackedStates,
    Stamp,
    index_arrays,
    index_of,
    pack_name,
    write_pack,
)
from fedssl.record.run_path import EXPERIMENT, ROUNDS
from fedssl.record.snapshot import Snapshot

FORMAT = 2
"""Version of the layout of a checkpoint. Raise this number when the layout changes."""

CHECKPOINTS = "checkpoint"
"""Name of the folder of checkpoints in a run directory."""

KEPT = 2
"""Number of checkpoints on disk: the newest, and the previous one in case the newest is damaged."""

MANIFEST = "manifest.json"

Lengths = Mapping[str, int]
"""The length of each file of the record (bytes), by name."""


class _Damaged(Exception):
    """A checkpoint's files differ from what was written."""


@dataclass(frozen=True)
class Found:
    """The checkpoint from which a run can go on.

    Args:
        snapshot: The snapshot of the newest undamaged checkpoint; None: there is no such checkpoint.
        lengths: Lengths of the record's files at the time of that checkpoint.
        damaged: What is wrong with each newer checkpoint, as sentences.
    """

    snapshot: Snapshot | None
    lengths: Lengths
    damaged: tuple[str, ...]


class Checkpoints:
    """The checkpoints in a run directory.

    Args:
        path: The run directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path / CHECKPOINTS
        self._packs = self._folder / "clients"
        self._index: Index = {}
        self._stamps: dict[int, Stamp] = {}
        self._newest = 0

    def save(self, snapshot: Snapshot, lengths: Lengths) -> None:
        """Write a checkpoint, and remove all checkpoints before the last two.

        Args:
            snapshot: The run after a finished round.
            lengths: Lengths of the record's files, which must already be flushed to the disk.

        Raises:
            OSError: The checkpoint cannot be written. Its files are removed, and earlier checkpoints stay.
        """
        if snapshot.round == self._newest:
            return
        folder = checkpoint_folder(self._path, snapshot.round)
        partial = folder.with_name(folder.name + PARTIAL)
        self._clean()
        try:
            self._packs.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
            index, stamps = self._write(partial, snapshot, lengths)
            partial.rename(folder)
            sync_folder(self._folder)
        except BaseException:
            self._clean()
            raise
        self._index, self._stamps, self._newest = index, stamps, snapshot.round
        self._forget(checkpoint_rounds(self._path)[KEPT:])

    def _write(
        self, folder: Path, snapshot: Snapshot, lengths: Lengths
    ) -> tuple[Index, dict[int, Stamp]]:
        index, packs = self._index, self._stamps
        if snapshot.clients is not None:
            index, packs = write_pack(self._packs, snapshot.clients, self._index, self._stamps)
            sync_folder(self._packs)
        kept = {
            f"{part}/{name}": array
            for part, arrays in snapshot.kept.items()
            for name, array in arrays.items()
        }
        parts = {**snapshot.model.parts(), "kept": kept, "clients": index_arrays(index)}
        files: dict[str, Stamp] = {}
        for name, arrays in parts.items():
            content = as_safetensors(arrays)
            write_synced(folder / f"{name}.safetensors", content)
            digest = hashlib.sha256(content).hexdigest()
            files[name] = {"bytes": len(content), "sha256": digest, "names": list(arrays)}
        manifest = {
            "format": FORMAT,
            "round": snapshot.round,
            "phase": snapshot.phase,
            "experiment": self._experiment(),
            "seconds": snapshot.seconds,
            "record": dict(lengths),
            "clients": snapshot.clients is not None,
            "files": files,
            "packs": {str(pack): dict(stamp) for pack, stamp in packs.items()},
        }
        text = json.dumps({"sha256": _digest(manifest), "manifest": manifest}, indent=1)
        write_synced(folder / MANIFEST, text.encode())
        sync_folder(folder)
        return index, packs

    def find(self) -> Found:
        """Return the newest undamaged checkpoint, and remove the damaged checkpoints after it.

        Raises:
            InputError: A checkpoint belongs to another experiment or another version of fedssl.
        """
        damaged = []
        for number in (numbered := checkpoint_rounds(self._path)):
            try:
                snapshot, lengths = self._read(number)
            except _Damaged as flaw:
                damaged.append(f"the checkpoint of round {number} is damaged: {flaw}")
                continue
            self._newest = number
            break
        else:
            number, snapshot, lengths = 0, None, {}
            self._index, self._stamps = {}, {}
        self._forget([newer for newer in numbered if newer > number])
        return Found(snapshot, lengths, tuple(damaged))

    def remove(self) -> None:
        """Remove all checkpoints, because the run is over."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, number: int) -> tuple[Snapshot, Lengths]:
        folder = checkpoint_folder(self._path, number)
        try:
            manifest = _read_manifest(folder)
            if manifest["experiment"] != self._experiment():
                raise InputError(
                    "--resume",
                    f"{self._path / EXPERIMENT} was changed after the run began",
                    "restore that file, or run without --resume to begin anew",
                )
            parts = {}
            for name, stamp in manifest["files"].items():
                arrays = load(_verified(folder / f"{name}.safetensors", stamp))
                parts[name] = {
                    key: arrays[key] for key in stamp["names"]
                }  # in the order in which they were written
            for pack, stamp in manifest["packs"].items():
                _verify(self._packs / pack_name(int(pack)), stamp)
            for name, length in manifest["record"].items():
                if (self._path / name).stat().st_size < length:
                    raise _Damaged(f"{name} is shorter than it was")
            snapshot = self._snapshot(manifest, parts)
            if snapshot.round != number:
                raise _Damaged(f"{ROUNDS} ends with round {snapshot.round}")
        except FileNotFoundError as error:
            raise _Damaged(f"{Path(error.filename).name} is missing") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _Damaged(str(error)) from None
        return snapshot, manifest["record"]

    def _snapshot(self, manifest: Mapping[str, Any], parts: Mapping[str, NamedArrays]) -> Snapshot:
        rounds = read_rounds(self._path / ROUNDS, manifest["record"][ROUNDS])
        self._index = index_of(parts["clients"])
        self._stamps = {int(pack): stamp for pack, stamp in manifest["packs"].items()}
        kept: dict[str, dict[str, npt.NDArray[Any]]] = {}
        for path, array in parts["kept"].items():
            part, name = path.split("/", 1)
            kept.setdefault(part, {})[name] = array
        clients = PackedStates(manifest["round"], self._packs, self._index)
        return Snapshot(
            rounds=rounds,
            model=GlobalModel(parts["model"], parts["ema"], parts["state"]),
            kept=kept,
            seconds=manifest["seconds"],
            clients=clients if manifest["clients"] else None,
        )

    def _experiment(self) -> str:
        """Return the checksum of the experiment file in the run directory."""
        return hashlib.sha256((self._path / EXPERIMENT).read_bytes()).hexdigest()

    def _forget(self, numbers: list[int]) -> None:
        """Remove checkpoints, and all packs that no remaining checkpoint needs."""
        for number in numbers:
            shutil.rmtree(checkpoint_folder(self._path, number))
        needed = set()
        for number in checkpoint_rounds(self._path):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, _Damaged):
                # A checkpoint that cannot be read needs no packs any more.
                manifest = _read_manifest(checkpoint_folder(self._path, number))
                needed |= {pack_name(int(pack)) for pack in manifest["packs"]}
        for path in self._packs.glob("*"):
            if path.name not in needed:
                path.unlink()

    def _clean(self) -> None:
        """Remove unfinished files and folders of a save that was interrupted."""
        for path in self._folder.glob(f"round-*{PARTIAL}"):
            shutil.rmtree(path)
        for path in self._packs.glob(f"*{PARTIAL}"):
            path.unlink()


def is_due(round: int, every: int) -> bool:
    """Return whether a checkpoint is due after a round: after the first, and after every so many rounds."""
    return round == 1 or round % every == 0


def checkpoint_folder(path: Path, round: int) -> Path:
    """Return the folder of the checkpoint of a round in a run directory."""
    return path / CHECKPOINTS / f"round-{round:06d}"


def checkpoint_rounds(path: Path) -> list[int]:
    """Return the rounds whose checkpoints a run directory holds, newest first."""
    names = [folder.name.removeprefix("round-") for folder in (path / CHECKPOINTS).glob("round-*")]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def other_version(path: Path) -> InputError:
    """Return the error for a file or folder that another version of fedssl wrote, from which no run can go on."""
    return InputError(
        "--resume",
        f"{path} was written by another version of fedssl",
        "use that version (environment.json names it), or run without --resume to begin anew",
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest: dict[str, Any] = written["manifest"]
    if written["sha256"] != _digest(manifest):
        raise _Damaged(f"{MANIFEST} is not what was written")
    if manifest["format"] != FORMAT:
        raise other_version(folder)
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _verified(path: Path, stamp: Stamp) -> bytes:
    """Return the content of a file; raise `_Damaged` if its checksum differs from the manifest's."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != stamp["sha256"]:
        raise _Damaged(f"{path.name} is not what was written")
    return content


def _verify(path: Path, stamp: Stamp) -> None:
    """Raise `_Damaged` if the checksum of a file, which may be large, differs from the manifest's."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != stamp["sha256"]:
            raise _Damaged(f"{path.name} is not what was written")
