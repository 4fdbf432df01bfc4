"""A user's own arrays in one numpy file: ``source = "npz:PATH"``."""

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.flaws import Flaws, plain_text
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.own_images import OwnImages

Arrays = dict[str, npt.NDArray[Any]]

MOST_CLASSES = 100_000
"""Of images that are predicted, labels are below this where no names say how many classes there are."""

UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy raises about a file that is not, or not quite, what `numpy.savez` writes."""

BOMB_BYTES, BOMB_RATIO = 10**9, 200
"""An array of more bytes than this that is packed more tightly than this is no images': photographs pack to 1 : 3."""


class Npz(OwnImages):
    """``images`` (N, H, W) or (N, H, W, C), bytes, and ``labels`` (N,), -1 where there is none.

    ``test_images`` and ``test_labels`` are optional, and so is ``class_names``. Any other array of length N is a column
    that a `natural` partition can follow; its test images' counterpart begins with ``test_``.

    MedMNIST's files are read too: there the training images' arrays begin with ``train_`` and labels are (N, 1); those
    that begin with ``val_`` are for test where there are none for test.
    """

    name: str = Field(description="the file, as numpy.savez writes it")

    def read(self) -> Raw:
        """Return the images, shape (C, H, W).

        Raises:
            InputError: No such file, not such a file, or arrays of the wrong names, types or shapes.
        """
        flaws = Flaws()
        arrays = self._arrays(flaws)
        train = self._block(arrays, "")
        test = self._block(arrays, "test_") if "test_images" in arrays else None
        if test is not None and set(test.columns) != set(train.columns):
            raise self.wrong(
                f"training images have the columns {sorted(train.columns)}, test images {sorted(test.columns)}",
                "a test image's column begins with test_",
            )
        labels = train.labels if test is None else np.concatenate([train.labels, test.labels])
        classes = int(labels.max(initial=UNKNOWN)) + 1
        names = arrays.get("class_names")
        if names is None and classes > max(2, len(labels)):
            problem = f"has labels up to {classes - 1}, but {len(labels)} images"
            raise self.wrong(problem, "number the classes from 0")
        if names is not None and (names.ndim != 1 or len(names) < classes):
            raise self.wrong(
                f"has class_names of shape {names.shape}, but labels up to {classes - 1}",
                "give one name a class",
            )
        shown = np.arange(classes) if names is None else names
        note_unused(arrays, flaws)
        return Raw(
            class_names=tuple(texts(shown)),
            train=[train],
            test=None if test is None else [test],
            flips=self.flips,
            flaws=flaws,
        )

    def read_images(self, flaws: Flaws) -> tuple[Block, tuple[str, ...]]:
        """Return ``images``, labels or not, and the name of every class that their labels can be.

        Args:
            flaws: Filled with what the file holds beside them.

        Raises:
            InputError: No such file, not such a file, or arrays of the wrong names, types or shapes.
        """
        arrays = self._arrays(flaws)
        images = arrays.get("images")
        if images is not None and "labels" not in arrays:
            arrays["labels"] = np.full(images.shape[:1], UNKNOWN)
        block = self._block(arrays, "")
        largest = int(block.labels.max(initial=UNKNOWN))
        if not len(block.labels):
            raise self.wrong("holds no images", "check the file")
        if "class_names" not in arrays and largest >= MOST_CLASSES:
            raise self.wrong(f"has labels up to {largest}", "number the classes from 0")
        if "class_names" in arrays and largest >= len(np.atleast_1d(arrays["class_names"])):
            raise self.wrong(
                f"has class_names of shape {arrays['class_names'].shape}, but labels up to {largest}",
                "give one name a class",
            )
        used = {"images", "labels", "class_names", *block.columns}
        flaws.leave_out("arrays are not used", [name for name in arrays if name not in used])
        names = arrays.get("class_names", np.arange(int(block.labels.max(initial=UNKNOWN)) + 1))
        return block, tuple(texts(names))

    def files(self) -> Iterator[str]:
        """Return the file."""
        yield str(self._path().absolute())

    def _path(self) -> Path:
        path = self.expanded(self.name)
        if not path.is_file():
            raise self.wrong("there is no such file", "check the path")
        return path

    def _arrays(self, flaws: Flaws) -> Arrays:
        """Return everything that the file holds, MedMNIST's arrays by our names; a remark says so."""
        path = self._path()
        try:
            self._check_sizes(path)
            file = np.load(path, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise self.wrong(
                    "cannot be read: it holds one array without a name", "write it with numpy.savez"
                )
            with file:
                return _by_our_names({name: file[name] for name in file.files}, flaws)
        except MemoryError:
            raise self.wrong(
                "there is too little memory for its arrays", "leave out arrays that are no images"
            ) from None
        except UNREADABLE as error:
            raise self.wrong(
                f"cannot be read: {plain_text(str(error))}", "write it with numpy.savez"
            ) from None

    def _check_sizes(self, path: Path) -> None:
        """Refuse arrays of objects, and those that claim or unpack to more than fits, before any is read."""
        if not zipfile.is_zipfile(path):
            return
        total = 0
        with zipfile.ZipFile(path) as members:
            for member in members.infolist():
                name = member.filename.removesuffix(".npy")
                total += member.file_size
                bombs = member.file_size > BOMB_BYTES
                if bombs and member.file_size > BOMB_RATIO * member.compress_size:
                    raise self.wrong(
                        f"cannot be read: array {name!r} unpacks from {member.compress_size:,} to "
                        f"{member.file_size:,} bytes, as no images do",
                        "write it with numpy.savez",
                    )
                with members.open(member) as file:
                    shape, dtype = _header(file)
                if dtype.hasobject:
                    raise self.wrong(
                        f"cannot be read: array {name!r} holds Python objects",
                        f"save it as numbers or text: numpy.savez(..., {name}={name}.astype(str)) for names, "
                        f"numpy.stack({name}) for images of one size",
                    )
                claimed = math.prod(shape) * dtype.itemsize
                if claimed > member.file_size:
                    raise self.wrong(
                        f"cannot be read: array {name!r} claims {claimed:,} bytes and has {member.file_size:,}",
                        "write it with numpy.savez",
                    )
        memory = _memory_bytes()
        if memory is not None and total > memory:
            raise self.wrong(
                f"its arrays take {total:,} bytes, more than the memory of this machine ({memory:,})",
                "give image files in a folder, which are read one at a time",
            )

    def _block(self, arrays: Arrays, prefix: str) -> Block:
        """Return the images whose arrays' names begin with a prefix."""
        missing = [name for name in ("images", "labels") if prefix + name not in arrays]
        if missing:
            needed = "images and labels, and test_images and test_labels if there are test images"
            raise self.wrong(
                f"has no array {prefix + missing[0]!r}; it has {sorted(arrays)}",
                f"call its arrays {needed}",
            )
        images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise self.wrong(
                f"{prefix}images is {images.dtype} of shape {images.shape}",
                "it must be uint8, 0 to 255, (N, H, W) or (N, H, W, C)",
            )
        images = images[..., None] if images.ndim == 3 else images
        if images.shape[3] not in (1, 3):
            raise self.wrong(
                f"{prefix}images has {images.shape[3]} channels",
                "there must be 1 or 3, the last axis",
            )
        if 0 in images.shape[1:]:
            raise self.wrong(f"{prefix}images has shape {images.shape}: no pixels")
        if labels.shape == (len(images), 1):
            labels = labels[:, 0]
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
            raise self.wrong(
                f"{prefix}labels is {labels.dtype} of shape {labels.shape}",
                f"it must be integers, ({len(images)},)",
            )
        if len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
            raise self.wrong(f"{prefix}labels has {labels.max()}", "number the classes from 0")
        labels = labels.astype(np.int64)
        if labels.min(initial=0) < UNKNOWN:
            raise self.wrong(f"{prefix}labels has {labels.min()}", "-1 is an image without label")
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
                raise self.wrong(problem, "a column has one value an image")
        rows = np.moveaxis(images, 3, 1)
        return Block(rows, labels, None, columns)


def note_unused(arrays: Arrays, flaws: Flaws) -> None:
    """Note the arrays that are neither images, labels, class names nor columns."""
    has_test = "test_images" in arrays
    known = {
        "images",
        "labels",
        "class_names",
        *(("test_images", "test_labels") if has_test else ()),
    }
    unused = [
        name
        for name in arrays
        if name not in known
        and (not _is_column(name, arrays) or (name.startswith("test_") and not has_test))
    ]
    flaws.leave_out("arrays are not used", unused)


def _is_column(name: str, arrays: Arrays) -> bool:
    """Say whether an array has one value an image; those of a split that is not read do not count."""
    return arrays[name].ndim == 1 and not (name.startswith("val_") and "val_images" in arrays)


def texts(names: npt.NDArray[Any]) -> list[str]:
    """Return an array of names as text; bytes are UTF-8."""
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "replace")
    shown: list[str] = names.reshape(-1).astype(str).tolist()
    return shown


def _by_our_names(arrays: Arrays, flaws: Flaws) -> Arrays:
    """Return arrays by the names that `Npz` describes, where they have those of MedMNIST."""
    if "images" in arrays or "train_images" not in arrays:
        return arrays
    renamed = {"train_": ""} if "test_images" in arrays else {"train_": "", "val_": "test_"}
    test = next((name for name in ("test_images", "val_images") if name in arrays), None)
    flaws.remarks.append(
        f"training images: train_images, test images: {test or 'a share of the training images'}"
    )
    result: Arrays = {}
    for name, values in arrays.items():
        prefix = next((old for old in renamed if name.startswith(old)), None)
        ours = name if prefix is None else renamed[prefix] + name.removeprefix(prefix)
        result[ours] = values
    return result


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the array that an open file begins with."""
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
    """Return the memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
