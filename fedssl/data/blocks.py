"""Blocks of images, and a writer that appends blocks to one numpy file."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from fedssl.core.errors import InputError
from fedssl.data.images import UNKNOWN, Mask, Rows

HEADER_BYTES = 128
"""The header of a numpy file takes this many bytes: numpy pads to multiples of 64, and four dimensions need over 64."""

BYTES_AT_ONCE = 2**23
"""At most this many bytes of images are written and counted at once; counting takes eight times as much memory."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Some images, in the order in which they are kept.

    Args:
        images: uint8, shape (n, C, H, W).
        labels: Class of each image, int64 (n,); -1 where nobody knows the class.
        labelable: Whether an image may be given its label, (n,), as in `Images`; by default every image whose class is
            known may be.
        columns: Further facts about each image, by the column's name; n texts or numbers, None where unknown.
        names: Name of each image in messages; by default its row.
    """

    images: npt.NDArray[np.uint8]
    labels: Rows
    labelable: Mask | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    names: Sequence[str] | None = None


class PartWriter:
    """Append blocks of images to a numpy file whose length is not known in advance; a context manager.

    Args:
        path: The file to write.
        kind: The source as the user named it, for messages.
        num_classes: Number of classes; every label must be smaller.
    """

    def __init__(self, path: Path, kind: str, num_classes: int) -> None:
        self.shape: tuple[int, ...] = ()
        self.count = 0
        self.columns: dict[str, list[Any]] = {}
        self._kind = kind
        self._num_classes = num_classes
        self._file: BinaryIO = path.open("wb")
        self._file.write(b"\0" * HEADER_BYTES)
        self._labels: list[Rows] = []
        self._labelable: list[Mask] = []
        self._histogram: npt.NDArray[np.int64] | int = 0
        self._told = time.monotonic()

    def add(self, block: Block) -> None:
        """Append a block.

        Raises:
            InputError: Its images have another shape than the images before, or a label is out of range.
        """
        num = len(block.labels)
        if num == 0:
            return
        shape = block.images.shape[1:]
        if self.shape and shape != self.shape:
            raise InputError(
                "data.source", f"{self._kind}: images are {self.shape} and {shape}", "resize them"
            )
        self.shape = shape
        labels = np.asarray(block.labels, dtype=np.int64)
        if labels.min() < UNKNOWN or labels.max() >= self._num_classes:
            raise InputError(
                "data.source",
                f"{self._kind}: labels run from {labels.min()} to {labels.max()}, but there are "
                f"{self._num_classes} classes",
                "number the classes from 0; -1 is an image without label",
            )
        self._labels.append(labels)
        known = labels >= 0
        self._labelable.append(known if block.labelable is None else known & block.labelable)
        for column in dict.fromkeys((*self.columns, *block.columns)):
            before = self.columns.setdefault(column, [None] * self.count)
            before.extend(block.columns.get(column, [None] * num))
        self._write(block.images)
        self.count += num

    def _write(self, images: npt.NDArray[np.uint8]) -> None:
        """Write and count images a few at a time, so that memory never holds a second copy of a large block."""
        at_once = max(1, BYTES_AT_ONCE // math.prod(self.shape))
        for start in range(0, len(images), at_once):
            part = np.ascontiguousarray(images[start : start + at_once])
            self._file.write(part.data)
            self._histogram = self._histogram + _histogram(part)
            if time.monotonic() - self._told > 5:
                self._told = time.monotonic()
                so_far = self.count + start + len(part)
                log.info("%s: %s images so far", self._kind, f"{so_far:,}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        with self._file:
            if error is None:
                self._write_header()

    def _write_header(self) -> None:
        """Write the header, which says how many images the file holds."""
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)
        if self._file.tell() != HEADER_BYTES:
            raise RuntimeError(f"numpy wrote a header of {self._file.tell()} bytes")

    @property
    def labels(self) -> Rows:
        """Class of every image written so far, int64 (N,)."""
        return np.concatenate([np.empty(0, np.int64), *self._labels])

    @property
    def labelable(self) -> Mask:
        """Whether each image written so far may be given its label, (N,)."""
        return np.concatenate([np.empty(0, np.bool_), *self._labelable])

    def moments(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel on the [0, 1] scale, rounded to four digits."""
        levels = np.arange(256) / 255
        shares = self._histogram / max(1, self.count * math.prod(self.shape[1:]))
        mean = shares @ levels
        std = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))
        return np.round(mean, 4).tolist(), np.maximum(np.round(std, 4), 1e-4).tolist()


def _histogram(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Count every level of every channel, (C, 256); integer sums are exact, however images are cut into blocks."""
    channels = range(images.shape[1])
    return np.stack([np.bincount(images[:, c].ravel(), minlength=256) for c in channels])
