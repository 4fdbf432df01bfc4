"""Data sets as memory-mapped arrays in a cache folder: written once, atomically, under a lock, with checksums.

An entry is a folder ``NAME-HASH`` of numpy files and a ``meta.json``, named by everything its content depends on. It is
written beside its place and moved there whole, so that no reader meets a part of one, whatever was killed when.
Processes that map the same files share one copy in memory.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import platformdirs

from fedssl.core.errors import InputError
from fedssl.core.text import one_line
from fedssl.data.blocks import Block, PartWriter
from fedssl.data.flaws import Flaws
from fedssl.data.images import UNKNOWN, Images, Mask, Rows

FORMAT = 3
"""Part of every entry's name: raise it when the layout changes, or the normalization of a built-in data set."""

CACHE_VARIABLE = "FEDSSL_CACHE"
"""Environment variable that moves the cache folder."""

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
"""Modes of folders and files that only their owner can read."""

PATIENCE = 2.0
"""Seconds to wait for another process in silence."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Raw:
    """A data set as a source reads it.

    Args:
        class_names: One name a class.
        train, test: The images, in any number of blocks; `test` is None where the data has no test images of its own.
        flips: Whether a mirrored image still shows the same class.
        mean, std: Of each channel on the [0, 1] scale; None: measured on the training images.
        flaws: Filled while the blocks are read.
        fixed_classes: Whether all classes stay, with or without images: they are another's to say.
    """

    class_names: tuple[str, ...]
    train: Iterable[Block]
    test: Iterable[Block] | None
    flips: bool
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flaws: Flaws = field(default_factory=Flaws)
    fixed_classes: bool = False


def cache_folder() -> Path:
    """Return where prepared data is kept: ``$FEDSSL_CACHE``, else the user's cache folder.

    A user without a home folder, as in a container that runs under a number, has one among the temporary files.

    Raises:
        InputError: ``$FEDSSL_CACHE`` begins with ``~``, and there is no home folder.
    """
    named = os.environ.get(CACHE_VARIABLE)
    try:
        if named:
            return Path(named).expanduser().absolute()
        folder = platformdirs.user_cache_path("fedssl")
    except RuntimeError:
        if named:
            raise InputError(
                CACHE_VARIABLE,
                f"is {named!r}, but there is no home folder",
                "name a folder without ~",
            ) from None
        folder = None
    has_home = os.environ.get("HOME") != "" or "XDG_CACHE_HOME" in os.environ
    if folder is not None and folder.is_absolute() and has_home:
        return folder
    return Path(tempfile.gettempdir()) / f"fedssl-{os.getuid()}"


@dataclass(frozen=True)
class Prepared:
    """An entry of the cache.

    Args:
        folder: Where it is.
        meta: Of its ``meta.json``, beside its own checksum: classes, normalization, columns, notes, remarks, the images
            that may be read another time, and size and checksum of every file.
    """

    folder: Path
    meta: Mapping[str, Any]

    def part(self, name: str) -> Images | None:
        """Map ``"train"`` or ``"test"``; None if the data has no such part.

        Pages are private to this process only once written to, which nobody does: torch wants arrays to be writable.
        """
        if name not in self.meta["parts"]:
            return None

        def mapped(array: str) -> npt.NDArray[Any]:
            path = self.folder / f"{name}_{array}.npy"
            try:
                return np.asarray(np.load(path, mmap_mode="c"))
            except ValueError:
                return np.asarray(np.load(path))  # an empty array cannot be mapped

        columns = {column: mapped(f"column_{i}") for i, column in enumerate(self.meta["columns"])}
        return Images(mapped("images"), mapped("labels"), mapped("labelable"), columns)


def prepare(
    kind: str, identity: Mapping[str, Any], read: Callable[[], Raw], *, skip: bool, verify: bool
) -> Prepared:
    """Return a data set's entry, written now if it is not there or is damaged.

    Args:
        kind: The source as the user named it.
        identity: Everything that the content depends on, as JSON can write it.
        read: Reads the data set; called only if need be.
        skip: Go on without flawed images; otherwise they are refused.
        verify: Compare checksums too, and not only sizes. Once an entry and process: it reads the whole of it.

    Raises:
        InputError: The data is flawed or not there, or the cache folder cannot be written to.
    """
    text = json.dumps({"format": FORMAT, "kind": kind, "skip": skip, **identity}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache_folder() / f"{kind.partition(':')[0].rpartition('.')[2]}-{digest}"
    _warn_of_others(folder.parent)
    found = _open(folder, verify)
    if found is not None and not _any_readable(found.meta["passing"]):
        return found
    try:
        make_private(folder.parent)
        with _locked(folder):
            found = _open(folder, verify)  # another process may have written it meanwhile
            if found is None:
                return _write(folder, kind, read, skip, "is damaged")
            if _any_readable(found.meta["passing"]):
                return _write(folder, kind, read, skip, "lacks images that can be read now")
            return found
    except OSError as error:
        raise InputError(
            CACHE_VARIABLE,
            f"cannot prepare {kind} in {folder.parent}: {error.strerror or error}",
            f"make room there, or set {CACHE_VARIABLE} to a folder you may write to",
        ) from None


@contextlib.contextmanager
def reading(kind: str) -> Iterator[None]:
    """Turn what the operating system says of a source's files into an error about the source, not about the cache."""
    try:
        yield
    except OSError as error:
        raise InputError(
            "data.source", f"{kind}: cannot be read: {error}", "check the path and who may read it"
        ) from None


def _open(folder: Path, verify: bool) -> Prepared | None:
    """Return an entry if it is there and whole."""
    try:
        written = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        meta, digest = written["meta"], written["sha256"]
        files = meta["files"].items()
        whole = digest == _digest(meta) and all(
            (folder / file).stat().st_size == stamp["bytes"] for file, stamp in files
        )
        if whole and verify:
            whole = _checksums_match(folder, (folder / "meta.json").stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, no longer there, or not what `_write` wrote
    return Prepared(folder, meta) if whole else None


def _any_readable(paths: Iterable[str]) -> bool:
    """Say whether a file that could not be read when an entry was written can be read now: then it is written anew."""
    for path in paths:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
                _sha256(Path(path))
                return True
    return False


def make_private(folder: Path) -> None:
    """Make a folder that nobody but its owner can look into: what it holds may be a client's private images."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


@functools.lru_cache(maxsize=8)
def _warn_of_others(folder: Path) -> None:
    """Warn once of a cache folder that others own or may write to: they decide what is in the images of every run."""
    with contextlib.suppress(OSError):
        found = folder.stat()
        others = ""
        if os.name == "posix" and found.st_uid != os.geteuid():
            others = f"belongs to another user ({found.st_uid})"
        elif os.name == "posix" and found.st_mode & stat.S_IWOTH:
            others = "can be written to by every user of this machine"
        if others:
            log.warning(
                "the cache folder %s %s, who can change what runs are trained on; %s moves it",
                folder, others, CACHE_VARIABLE,
            )  # fmt: skip


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _checksums_match(folder: Path, written: int) -> bool:
    """Say whether every file of an entry holds what was written; `written` tells one writing from the next."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["meta"]
    files = meta["files"].items()
    return all(_sha256(folder / name) == stamp["sha256"] for name, stamp in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an entry's lock, which a killed process lets go of."""
    lock = filelock.FileLock(f"{folder}.lock", mode=PRIVATE_FILE)
    try:
        lock.acquire(timeout=PATIENCE)
    except filelock.Timeout:
        log.info("waiting for another process that prepares %s", folder.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, kind: str, read: Callable[[], Raw], skip: bool, why: str) -> Prepared:
    """Write an entry beside its place and move it there; the lock is ours, so whatever lies there is dead.

    Args:
        folder: The entry's place.
        kind: The source as the user named it.
        read: Reads the data set.
        skip: Go on without flawed images.
        why: What is wrong with the entry that lies there, if there is one.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    if folder.exists():
        log.warning("%s %s; preparing it anew", folder, why)
        folder.rename(partial)  # gone at once for whoever opens it, and not file by file
        shutil.rmtree(partial)
    partial.mkdir(mode=PRIVATE_FOLDER)
    began = time.perf_counter()
    log.info("preparing %s in %s (once)", kind, folder.parent)
    try:
        with reading(kind):
            raw = read()
        meta = _write_parts(partial, kind, raw, skip)
        arrays = sorted(partial.iterdir())
        stamps = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in arrays
        }
        meta = json.loads(json.dumps({**meta, "files": stamps}))  # as it will be read
        text = json.dumps({"sha256": _digest(meta), "meta": meta}, indent=1)
        (partial / "meta.json").write_text(text, encoding="utf-8")
        for path in (*arrays, partial / "meta.json"):
            path.chmod(PRIVATE_FILE)
            _sync(path)  # a power cut after the move would otherwise leave an entry of zeros
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for remark in meta["remarks"]:
        log.info("%s: %s", kind, remark)
    for note in meta["notes"]:
        log.warning("%s: left out: %s", kind, note)
    log.info("prepared %s in %.1f s", kind, time.perf_counter() - began)
    return Prepared(folder, meta)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _write_parts(partial: Path, kind: str, raw: Raw, skip: bool) -> dict[str, Any]:
    """Write all arrays and return what is known of them."""
    classes = len(raw.class_names)
    with PartWriter(partial / "train_images.npy", kind, classes) as train:
        for block in _read_blocks(kind, raw.train):
            train.add(block)
    counts = np.bincount(train.labels[train.labels >= 0], minlength=classes)
    there = np.full(classes, True) if raw.fixed_classes else counts > 0
    kept = np.flatnonzero(there)
    shown = Counter(map(one_line, raw.class_names))
    raw.flaws.add(
        "classes have the name of another", [n for n, count in shown.items() if count > 1]
    )
    empty = [raw.class_names[cls] for cls in np.flatnonzero(~there)]
    raw.flaws.add("classes without training images", empty)
    test = None
    if raw.test is not None:
        with PartWriter(partial / "test_images.npy", kind, classes) as test:
            for block in _of_classes(kept, _read_blocks(kind, raw.test), raw.flaws):
                test.add(block)
    if not skip:
        raw.flaws.refuse(kind)
    missing = _missing(train, len(kept), test)
    if missing:
        left_out = "; ".join(("", *raw.flaws.notes()))
        raise InputError("data.source", f"{kind}: there are {missing}{left_out}")
    if test is not None and test.shape != train.shape:
        raise InputError(
            "data.source", f"{kind}: training images are {train.shape}, test images {test.shape}"
        )
    new_class = np.full(classes + 1, UNKNOWN)  # the last is UNKNOWN's own
    new_class[kept] = np.arange(len(kept))
    values = _Codes()
    parts = {"train": train} if test is None else {"train": train, "test": test}
    for part, writer in parts.items():
        np.save(partial / f"{part}_labels.npy", new_class[writer.labels])
        np.save(partial / f"{part}_labelable.npy", writer.labelable)
    for index, column in enumerate(train.columns):
        for part, writer in parts.items():
            given = writer.columns.get(column, [""] * writer.count)
            np.save(partial / f"{part}_column_{index}.npy", values.codes(column, given))
    measured_mean, measured_std = train.moments()
    return {
        "kind": kind,
        "parts": list(parts),
        "shape": train.shape,
        "class_names": [one_line(raw.class_names[cls]) for cls in kept],
        "mean": raw.mean or measured_mean,
        "std": raw.std or measured_std,
        "flips": raw.flips,
        "columns": list(train.columns),
        "column_values": values.names,
        "notes": raw.flaws.notes(),
        "remarks": raw.flaws.remarks,
        "passing": raw.flaws.passing,
    }


def _read_blocks(kind: str, blocks: Iterable[Block]) -> Iterator[Block]:
    with reading(kind):
        yield from blocks


def _of_classes(classes: Rows, blocks: Iterable[Block], flaws: Flaws) -> Iterator[Block]:
    """Yield the images of some classes, and note the others as flaws of a test set."""
    seen = 0
    for block in blocks:
        known = np.isin(block.labels, classes)
        names = block.names or [f"test row {seen + i}" for i in range(len(known))]
        strange = [names[i] for i in np.flatnonzero(~known).tolist()]
        flaws.add("test images are of no class there is to learn", strange)
        yield _only(block, known) if strange else block
        seen += len(known)


def _missing(train: PartWriter, num_classes: int, test: PartWriter | None) -> str:
    """Say what is too little to learn from or to evaluate on; empty if nothing is."""
    if train.count == 0:
        return "no training images"
    if num_classes < 2:
        return f"training images of {num_classes} classes, fewer than two"
    return "no test images" if test is not None and test.count == 0 else ""


def _only(block: Block, rows: Mask) -> Block:
    columns = {
        name: [v for v, keep in zip(values, rows, strict=True) if keep]
        for name, values in block.columns.items()
    }
    labelable = None if block.labelable is None else block.labelable[rows]
    return Block(block.images[rows], block.labels[rows], labelable, columns)


class _Codes:
    """Numbers for the values of columns, the same ones in training and test images."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = {}

    def codes(self, column: str, values: Iterable[Any]) -> Rows:
        numbers = self._numbers.setdefault(column, {})
        texts = ["" if value is None else one_line(str(value)) for value in values]
        return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)

    @property
    def names(self) -> dict[str, list[str]]:
        return {column: list(numbers) for column, numbers in self._numbers.items()}
