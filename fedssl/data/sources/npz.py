"""A user's own arrays in one numpy file: ``source = "npz:PATH"``."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.own_images import OwnImages

Arrays = dict[str, npt.NDArray[Any]]

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


class Npz(OwnImages):
    """``images`` (N, H, W) or (N, H, W, C), bytes, and ``labels`` (N,), -1 where there is none.

    ``test_images`` and ``test_labels`` are optional, and so is ``class_names``. Any other array of length N is a column
    that a `natural` partition can follow; its test images' counterpart begins with ``test_``.
    """

    name: str = Field(description="the file, as numpy.savez writes it")

    def read(self) -> Raw:
        """Return the images, shape (C, H, W).

        Raises:
            InputError: No such file, not such a file, or arrays of the wrong names, types or shapes.
        """
        arrays = self._arrays()
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
        return Raw(
            class_names=tuple(shown.astype(str).tolist()),
            train=[train],
            test=None if test is None else [test],
            flips=self.flips,
        )

    def read_images(self) -> tuple[Block, tuple[str, ...]]:
        """Return ``images``, labels or not, and the name of every class that their labels can be.

        Raises:
            InputError: No such file, not such a file, or arrays of the wrong names, types or shapes.
        """
        arrays = self._arrays()
        if "images" in arrays and "labels" not in arrays:
            arrays["labels"] = np.full(len(arrays["images"]), UNKNOWN)
        block = self._block(arrays, "")
        names = arrays.get("class_names", np.arange(int(block.labels.max(initial=UNKNOWN)) + 1))
        return block, tuple(names.astype(str).tolist())

    def files(self) -> Iterator[str]:
        """Return the file."""
        yield str(self._path().absolute())

    def _path(self) -> Path:
        path = Path(self.name).expanduser()
        if not path.is_file():
            raise self.wrong("there is no such file", "check the path")
        return path

    def _arrays(self) -> Arrays:
        """Return everything that the file holds."""
        path = self._path()
        try:
            file = np.load(path, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise self.wrong(
                    "cannot be read: it holds one array without a name", "write it with numpy.savez"
                )
            with file:
                return {name: file[name] for name in file.files}
        except UNREADABLE as error:
            raise self.wrong(f"cannot be read: {error}", "write it with numpy.savez") from None

    def _block(self, arrays: Arrays, prefix: str) -> Block:
        """Return the images whose arrays' names begin with a prefix."""
        missing = [name for name in ("images", "labels") if prefix + name not in arrays]
        if missing:
            raise self.wrong(f"has no array {prefix + missing[0]!r}", f"it has {sorted(arrays)}")
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
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
            raise self.wrong(
                f"{prefix}labels is {labels.dtype} of shape {labels.shape}",
                f"it must be integers, ({len(images)},)",
            )
        labels = labels.astype(np.int64)
        if labels.min(initial=0) < UNKNOWN:
            raise self.wrong(f"{prefix}labels has {labels.min()}", "-1 is an image without label")
        columns = {
            name.removeprefix(prefix): values
            for name, values in arrays.items()
            if name.startswith(prefix)
            and name.removeprefix(prefix) not in ("images", "labels", "class_names")
            and (prefix or not name.startswith("test_"))
            and values.ndim == 1
        }
        for name, values in columns.items():
            if len(values) != len(images):
                problem = f"array {prefix + name!r} has {len(values)} values, but there are {len(images)} images"
                raise self.wrong(problem, "a column has one value an image")
        rows = np.moveaxis(images, 3, 1)
        return Block(rows, labels, None, columns)
