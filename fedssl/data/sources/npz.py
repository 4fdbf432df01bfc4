"""A source that reads a user's own arrays from one numpy file: ``source = "npz:PATH"``."""

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl.core.known_names import is_npz_file
from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.flaws import Flaws, plain_text
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.own_images import OwnImages

Arrays = dict[str, npt.NDArray[Any]]

MOST_CLASSES = 100_000
"""`read_images` refuses labels from this number on if no class names say how many classes there are."""

UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that numpy raises about a file that differs from what `numpy.savez` writes."""

BOMB_BYTES, BOMB_RATIO = 10**9, 200
"""Arrays with more bytes and a higher compression ratio are refused as no images: photographs reach a ratio of 3."""


class Npz(OwnImages):
    """A file of ``images``, bytes (N, H, W) or (N, H, W, C), and ``labels``, integers (N,), -1 if there is none.

    ``test_images`` and ``test_labels`` are optional, and so is ``class_names``. Any other array of length N is a column
    that a `natural` partition can follow; the array of the same column for test images begins with ``test_``.

    Files of MedMNIST are read too. In these files, arrays of training images begin with ``train_``, and labels have
    shape (N, 1). Arrays that begin with ``val_`` are read as test images if there are no arrays of test images; otherwise
    they are not used, and data.validation holds training images out. Several labels an image are refused.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"name"})
    knows_name: ClassVar[Callable[[str], bool]] = is_npz_file

    name: str = Field(description="path of the file, which numpy.savez writes")

    def read(self) -> Raw:
        """Return the images, shape (C, H, W).

        Raises:
            InputError: There is no such file, numpy cannot read it, or its arrays have wrong names, types or shapes.
        """
        flaws = Flaws()
        arrays = self._arrays()
        parts = parts_of(arrays)
        flaws.remark(*parts.remarks())
        train = self._block(arrays, parts.train)
        test = None if parts.test is None else self._block(arrays, parts.test)
        if test is not None and set(test.columns) != set(train.columns):
            raise self.source_error(
                f"training images have the columns {sorted(train.columns)}, test images {sorted(test.columns)}",
                "give both the same columns; a column of test images begins with test_",
            )
        labels = train.labels if test is None else np.concatenate([train.labels, test.labels])
        classes = int(labels.max(initial=UNKNOWN)) + 1
        names = arrays.get("class_names")
        if names is None and classes > max(2, len(labels)):
            problem = f"has labels up to {classes - 1}, but {len(labels)} images"
            raise self.source_error(problem, "number the classes from 0")
        if names is not None and (names.ndim != 1 or len(names) < classes):
            raise self.source_error(
                f"has class_names of shape {names.shape}, but labels up to {classes - 1}",
                "give one name a class",
            )
        shown = np.arange(classes) if names is None else names
        note_unused_arrays(arrays, parts, flaws)
        return Raw(
            class_names=tuple(names_as_text(shown)),
            train=[train],
            test=None if test is None else [test],
            flips=self.flips,
            flaws=flaws,
        )

    def read_images(self, flaws: Flaws) -> tuple[Block, tuple[str, ...]]:
        """Return the images of the file, with labels if it has any, and the name of every class.

        Of a MedMNIST file, these are the test images if there are any.

        Args:
            flaws: Filled with the arrays that are not used.

        Raises:
            InputError: There is no such file, numpy cannot read it, or its arrays have wrong names, types or shapes.
        """
        arrays = self._arrays()
        images, parts = arrays.get("images"), parts_of(arrays)
        if images is not None and "labels" not in arrays:
            arrays["labels"] = np.full(images.shape[:1], UNKNOWN)
        prefix = parts.train if not parts.train or parts.test is None else parts.test
        if prefix:
            flaws.remark(f"images: {prefix}images")
        block = self._block(arrays, prefix)
        largest = int(block.labels.max(initial=UNKNOWN))
        if not len(block.labels):
            raise self.source_error("holds no images", "check the file")
        if "class_names" not in arrays and largest >= MOST_CLASSES:
            raise self.source_error(f"has labels up to {largest}", "number the classes from 0")
        if "class_names" in arrays and largest >= len(np.atleast_1d(arrays["class_names"])):
            raise self.source_error(
                f"has class_names of shape {arrays['class_names'].shape}, but labels up to {largest}",
                "give one name a class",
            )
        used = {"class_names", *(prefix + name for name in ("images", "labels", *block.columns))}
        flaws.leave_out("arrays are not used", [name for name in arrays if name not in used])
        names = arrays.get("class_names", np.arange(int(block.labels.max(initial=UNKNOWN)) + 1))
        return block, tuple(names_as_text(names))

    def files(self) -> Iterator[str]:
        """Yield the path of the file."""
        yield str(self._path().absolute())

    def _path(self) -> Path:
        path = self.expand_home(self.name)
        if not path.is_file():
            raise self.not_found_error("file", self.name)
        return path

    def _arrays(self) -> Arrays:
        """Return all arrays of the file."""
        path = self._path()
        try:
            self._check_sizes(path)
            file = np.load(path, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise self.source_error(
                    "cannot be read: it holds one array without a name", "write it with numpy.savez"
                )
            with file:
                return {name: file[name] for name in file.files}
        except MemoryError:
            raise self.source_error(
                "there is too little memory for its arrays", "remove arrays that are no images"
            ) from None
        except UNREADABLE as error:
            raise self.source_error(
                f"cannot be read: {plain_text(str(error))}", "write it with numpy.savez"
            ) from None

    def _check_sizes(self, path: Path) -> None:
        """Refuse arrays of Python objects and arrays that would not fit in memory, before any array is read."""
        if not zipfile.is_zipfile(path):
            return
        total = 0
        with zipfile.ZipFile(path) as members:
            for member in members.infolist():
                name = member.filename.removesuffix(".npy")
                total += member.file_size
                bombs = member.file_size > BOMB_BYTES
                if bombs and member.file_size > BOMB_RATIO * member.compress_size:
                    raise self.source_error(
                        f"cannot be read: array {name!r} unpacks from {member.compress_size:,} to "
                        f"{member.file_size:,} bytes, as no images do",
                        "write it with numpy.savez",
                    )
                with members.open(member) as file:
                    shape, dtype = _header(file)
                if dtype.hasobject:
                    raise self.source_error(
                        f"cannot be read: array {name!r} holds Python objects",
                        f"save it as numbers or text: numpy.savez(..., {name}={name}.astype(str)) for names, "
                        f"numpy.stack({name}) for images of one size",
                    )
                claimed = math.prod(shape) * dtype.itemsize
                if claimed > member.file_size:
                    raise self.source_error(
                        f"cannot be read: array {name!r} claims {claimed:,} bytes and has {member.file_size:,}",
                        "write it with numpy.savez",
                    )
        memory = _memory_bytes()
        if memory is not None and total > memory:
            raise self.source_error(
                f"its arrays take {total:,} bytes, more than the memory of this machine ({memory:,})",
                "give image files in a folder, which are read one at a time",
            )

    def _block(self, arrays: Arrays, prefix: str) -> Block:
        """Return the images in the arrays whose names begin with a prefix."""
        # Check that both arrays are there.
        missing = [name for name in ("images", "labels") if prefix + name not in arrays]
        if missing:
            needed = "images and labels, and test_images and test_labels if there are test images"
            raise self.source_error(
                f"has no array {prefix + missing[0]!r}; it has {sorted(arrays)}",
                f"call its arrays {needed}",
            )
        # Images: bytes, (N, H, W, C) with 1 or 3 channels.
        images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise self.source_error(
                f"{prefix}images is {images.dtype} of shape {images.shape}",
                "it must be uint8, 0 to 255, (N, H, W) or (N, H, W, C)",
            )
        images = images[..., None] if images.ndim == 3 else images
        if images.shape[3] not in (1, 3):
            raise self.source_error(
                f"{prefix}images has {images.shape[3]} channels",
                "there must be 1 or 3, the last axis; volumes are not read",
            )
        if 0 in images.shape[1:]:
            raise self.source_error(f"{prefix}images has shape {images.shape}: no pixels")
        # Labels: int64 (N,), -1 or a class.
        if labels.shape == (len(images), 1):
            labels = labels[:, 0]
        if labels.ndim == 2 and len(labels) == len(images):
            raise self.source_error(
                f"{prefix}labels has {labels.shape[1]} labels for each image",
                "an image must have one class: keep one of the labels, integers (N,)",
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
            raise self.source_error(
                f"{prefix}labels is {labels.dtype} of shape {labels.shape}",
                f"it must be integers, ({len(images)},)",
            )
        if len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
            raise self.source_error(
                f"{prefix}labels has {labels.max()}", "number the classes from 0"
            )
        labels = labels.astype(np.int64)
        if labels.min(initial=0) < UNKNOWN:
            raise self.source_error(
                f"{prefix}labels has {labels.min()}", "-1 is an image without label"
            )
        # Columns: all other arrays of this part with one value an image.
        columns = {
            name.removeprefix(prefix): values
            for name, values in arrays.items()
            if name.startswith(prefix)
            and name.removeprefix(prefix) not in ("images", "labels", "class_names")
            and (prefix or not name.startswith("test_"))
            and _is_column(name, arrays)
        }
        for name, values in columns.items():
            if len(values) != len(images):
                problem = f"array {prefix + name!r} has {len(values)} values, but there are {len(images)} images"
                raise self.source_error(problem, "a column has one value an image")
        rows = np.moveaxis(images, 3, 1)
        return Block(rows, labels, None, columns)


class Parts(NamedTuple):
    """How the names of arrays of training and of test images begin; `test` is None if there are no test images."""

    train: str
    test: str | None

    def remarks(self) -> list[str]:
        """Return one sentence that says which arrays are read, if the file has MedMNIST's names; otherwise none."""
        test = "a share of the training images" if self.test is None else f"{self.test}images"
        return [f"training images: {self.train}images, test images: {test}"] if self.train else []


def parts_of(arrays: Arrays) -> Parts:
    """Return which arrays are training and test images, by this source's names or by MedMNIST's."""
    if "images" in arrays or "train_images" not in arrays:
        return Parts("", "test_" if "test_images" in arrays else None)
    tests = (prefix for prefix in ("test_", "val_") if f"{prefix}images" in arrays)
    return Parts("train_", next(tests, None))


def note_unused_arrays(arrays: Arrays, parts: Parts, flaws: Flaws) -> None:
    """Note the arrays that are neither images, labels, class names nor columns as left out."""
    read = [prefix for prefix in parts if prefix is not None]
    known = {"class_names", *(prefix + name for prefix in read for name in ("images", "labels"))}

    def is_used(name: str) -> bool:
        if name in known or not _is_column(name, arrays):
            return name in known
        if parts.train:
            return name.startswith(tuple(read))
        return parts.test is not None or not name.startswith("test_")

    flaws.leave_out("arrays are not used", [name for name in arrays if not is_used(name)])


def _is_column(name: str, arrays: Arrays) -> bool:
    """Say whether an array is a column, one value an image; arrays of a split that is not read are no columns."""
    return arrays[name].ndim == 1 and not (name.startswith("val_") and "val_images" in arrays)


def names_as_text(names: npt.NDArray[Any]) -> list[str]:
    """Return an array of names as a list of text; bytes are decoded as UTF-8."""
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "replace")
    shown: list[str] = names.reshape(-1).astype(str).tolist()
    return shown


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the array at the start of an open file."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array is written in numpy's format {version}")
    shape, _, dtype = read(file)
    return shape, dtype


def _memory_bytes() -> int | None:
    """Return the memory of this machine in bytes; None if the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
