"""A cache folder of data sets as memory-mapped arrays: written once, atomically, under a lock, with checksums.

An entry is a folder ``NAME-HASH`` of numpy files and a ``meta.json``; everything that its content depends on goes into
the hash. An entry is written beside its place and then moved there as a whole, so that no reader ever meets a part of
an entry, even if the writer was killed. Processes that map the same files share one copy in memory.
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
from fedssl.data.flaws import NO_TRAINING_IMAGES, Flaws
from fedssl.data.images import UNKNOWN, Images, Mask, Rows

FORMAT = 3
"""Version of the layout, a part of every entry's name. Raise it if the layout or a built-in normalization changes."""

CACHE_VARIABLE = "FEDSSL_CACHE"
"""Environment variable that names another cache folder."""

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
"""Modes of folders and files that only their owner can read."""

PATIENCE = 2.0
"""Wait this long (seconds) for another process before a log line says so."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Raw:
    """A data set as a source reads it.

    Args:
        class_names: Name of each class.
        train, test: The images, in any number of blocks; `test` is None if the data has no test images of its own.
        flips: Whether a mirrored image still shows the same class.
        mean, std: Mean and standard deviation of each channel on the [0, 1] scale; None: they are measured on the
            training images.
        flaws: Flaws of the data; filled while the blocks are read.
        fixed_classes: Whether classes without images stay, because a federation has set the classes.
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
    """Return the folder that keeps prepared data: ``$FEDSSL_CACHE``, or else the user's cache folder.

    A user without a home folder, as in a container that runs under a user number, gets a folder for temporary files.

    Raises:
        InputError: ``$FEDSSL_CACHE`` begins with ``~``, and the user has no home folder.
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
        folder: Folder of the entry.
        meta: Content of its ``meta.json`` without the file's own checksum: classes, normalization, columns, notes,
            remarks, the images that could not be read but may be later, and size and checksum of every file.
    """

    folder: Path
    meta: Mapping[str, Any]

    def part(self, name: str) -> Images | None:
        """Map the images of the part ``"train"`` or ``"test"``; return None if the data has no such part.

        The arrays are mapped copy-on-write, because torch wants writable arrays. Nobody writes to them, so processes
        share their pages.
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
    """Return the entry of a data set; write it first if it is missing or damaged.

    Args:
        kind: The source as the user named it.
        identity: Everything that the content depends on, in types that JSON can write.
        read: Function that reads the data set; it is called only if the entry must be written.
        skip: Whether to leave flawed images out; otherwise they are refused.
        verify: Whether to compare checksums and not only sizes. This reads the whole entry, once in each process.

    Raises:
        InputError: The data is flawed or missing, or the cache folder cannot be written to.
    """
    text = json.dumps({"format": FORMAT, "kind": kind, "skip": skip, **identity}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache_folder() / f"{kind.partition(':')[0].rpartition('.')[2]}-{digest}"
    _warn_of_others(folder.parent)
    found = _open(folder, verify)
    if found is not None and not _any_readable(found.meta["passing"]):
        return found
    try:
        make_private_folder(folder.parent)
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
def blame_source(kind: str) -> Iterator[None]:
    """Turn an `OSError` about a source's files into an `InputError` about the source, and not about the cache."""
    try:
        yield
    except OSError as error:
        raise InputError(
            "data.source",
            f"{kind}: cannot be read: {error}",
            "check that the path is right and that you may read it",
        ) from None


def _open(folder: Path, verify: bool) -> Prepared | None:
    """Return an entry if it exists and is whole, else None."""
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
        return None  # the entry is missing, was just removed, or is not as `_write` wrote it
    return Prepared(folder, meta) if whole else None


def _any_readable(paths: Iterable[str]) -> bool:
    """Say whether a file that could not be read when its entry was written can be read now."""
    for path in paths:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
                _sha256(Path(path))
                return True
    return False


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner can look into, because it may hold a client's private images."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


@functools.lru_cache(maxsize=8)
def _warn_of_others(folder: Path) -> None:
    """Warn once if other users own the cache folder or may write to it: they could change the images of every run."""
    with contextlib.suppress(OSError):
        found = folder.stat()
        others = ""
        if os.name == "posix" and found.st_uid != os.geteuid():
            others = f"belongs to another user ({found.st_uid})"
        elif os.name == "posix" and found.st_mode & stat.S_IWOTH:
            others = "can be written to by every user of this machine"
        if others:
            log.warning(
                "the cache folder %s %s, who can change the images that runs train on; set %s to move it",
                folder, others, CACHE_VARIABLE,
            )  # fmt: skip


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _checksums_match(folder: Path, written: int) -> bool:
    """Say whether every file of an entry has its checksum.

    Args:
        folder: Folder of the entry.
        written: When the entry was written (nanoseconds); a new entry must not get the cached answer of an old one.
    """
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["meta"]
    files = meta["files"].items()
    return all(_sha256(folder / name) == stamp["sha256"] for name, stamp in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an entry; the operating system releases the lock of a killed process."""
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
    """Write an entry beside its place and then move it there.

    The caller holds the entry's lock, so that no living process writes what already lies there; it is removed.

    Args:
        folder: Place of the entry.
        kind: The source as the user named it.
        read: Function that reads the data set.
        skip: Whether to leave flawed images out.
        why: What is wrong with the old entry, if there is one; for the log.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    if folder.exists():
        log.warning("%s %s; preparing it anew", folder, why)
        folder.rename(partial)  # so that readers lose the entry at once, and not file by file
        shutil.rmtree(partial)
    partial.mkdir(mode=PRIVATE_FOLDER)
    began = time.perf_counter()
    log.info("preparing %s in %s (once)", kind, folder.parent)
    try:
        with blame_source(kind):
            raw = read()
        meta = _write_parts(partial, kind, raw, skip)
        arrays = sorted(partial.iterdir())
        stamps = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in arrays
        }
        meta = json.loads(
            json.dumps({**meta, "files": stamps})
        )  # with the types that reading the file will give
        text = json.dumps({"sha256": _digest(meta), "meta": meta}, indent=1)
        (partial / "meta.json").write_text(text, encoding="utf-8")
        for path in (*arrays, partial / "meta.json"):
            path.chmod(PRIVATE_FILE)
            _sync(path)  # else a power cut after the move could leave an entry of zeros
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
    """Write all arrays of an entry and return their description for its ``meta.json``."""
    # Write the training images, (N, C, H, W); labels and columns stay in the writer's memory.
    classes = len(raw.class_names)
    with PartWriter(partial / "train_images.npy", kind, classes) as train:
        for block in _read_blocks(kind, raw.train):
            train.add(block)
    # Find the classes that stay: usually only those with training images.
    counts = np.bincount(train.labels[train.labels >= 0], minlength=classes)
    there = np.full(classes, True) if raw.fixed_classes else counts > 0
    kept = np.flatnonzero(there)
    shown = Counter(map(one_line, raw.class_names))
    raw.flaws.add(
        "classes have the name of another", [n for n, count in shown.items() if count > 1]
    )
    empty = [raw.class_names[cls] for cls in np.flatnonzero(~there)]
    raw.flaws.add(NO_TRAINING_IMAGES, empty)
    # Write the test images of these classes; all flaws are known only now, so now they are refused.
    test = None
    if raw.test is not None:
        with PartWriter(partial / "test_images.npy", kind, classes) as test:
            for block in _keep_classes(kept, _read_blocks(kind, raw.test), raw.flaws):
                test.add(block)
    if not skip:
        raw.flaws.refuse(kind, train.count + (0 if test is None else test.count))
    missing = _describe_missing(train, len(kept), test)
    if missing:
        left_out = "; ".join(("", *raw.flaws.notes()))
        raise InputError("data.source", f"{kind}: there are {missing}{left_out}")
    if test is not None and test.shape != train.shape:
        raise InputError(
            "data.source", f"{kind}: training images are {train.shape}, test images {test.shape}"
        )
    # Write labels, numbered anew over the classes that stay, and the codes of columns.
    new_class = np.full(classes + 1, UNKNOWN)  # the last element is for UNKNOWN = -1
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
    with blame_source(kind):
        yield from blocks


def _keep_classes(classes: Rows, blocks: Iterable[Block], flaws: Flaws) -> Iterator[Block]:
    """Yield the test images of some classes, and note all other test images as flaws."""
    seen = 0
    for block in blocks:
        known = np.isin(block.labels, classes)
        names = block.names or [f"test row {seen + i}" for i in range(len(known))]
        strange = [names[i] for i in np.flatnonzero(~known).tolist()]
        flaws.add("test images are of no class there is to learn", strange)
        yield _select(block, known) if strange else block
        seen += len(known)


def _describe_missing(train: PartWriter, num_classes: int, test: PartWriter | None) -> str:
    """Return what is missing to train and evaluate, as a phrase; empty if nothing is missing."""
    if train.count == 0:
        return "no training images"
    if num_classes < 2:
        return f"training images of {num_classes} classes, fewer than two"
    return "no test images" if test is not None and test.count == 0 else ""


def _select(block: Block, rows: Mask) -> Block:
    columns = {
        name: [v for v, keep in zip(values, rows, strict=True) if keep]
        for name, values in block.columns.items()
    }
    labelable = None if block.labelable is None else block.labelable[rows]
    return Block(block.images[rows], block.labels[rows], labelable, columns)


class _Codes:
    """Assigns numbers to the values of columns, the same numbers for training and test images."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = {}

    def codes(self, column: str, values: Iterable[Any]) -> Rows:
        numbers = self._numbers.setdefault(column, {})
        texts = ["" if value is None else one_line(str(value)) for value in values]
        return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)

    @property
    def names(self) -> dict[str, list[str]]:
        return {column: list(numbers) for column, numbers in self._numbers.items()}
