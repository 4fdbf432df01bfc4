"""Images as they lie on disk, and subsets of them: rows of a shared pool that is not copied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedssl.data.shard import ImageSpec

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

UNKNOWN = -1
"""Label of an image whose class nobody knows."""


def name_of_class(cls: int, names: Sequence[str]) -> str:
    """Return the name of a class for messages: its number if there are no names."""
    return names[cls] if names else str(cls)


@dataclass(frozen=True)
class Images:
    """Images, their true classes, and which of them may ever be given a label.

    Args:
        pool: uint8, shape (P, C, H, W); usually mapped from a file.
        labels: True class of each image, int64 (N,); -1 where nobody knows the class.
        labelable: Whether an image may be given its label, (N,). The extra images of some data sets are never given
            their label, though their classes are known: these classes only measure pseudo-labels.
        columns: Further facts about each image, such as its maker, by the column's name; int64 codes (N,).
        rows: Place of each image in the pool, int64 (N,); by default the images are the whole pool.
    """

    pool: npt.NDArray[np.uint8]
    labels: Rows
    labelable: Mask
    columns: Mapping[str, Rows] = field(default_factory=dict)
    rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows) -> "Images":
        """Return the images in the given rows; they share the pool."""
        return Images(
            self.pool,
            self.labels[rows],
            self.labelable[rows],
            {name: codes[rows] for name, codes in self.columns.items()},
            rows if self.rows is None else self.rows[rows],
        )

    def read(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """Return a copy of the pixels in the given rows, shape (n, C, H, W)."""
        return np.take(self.pool, rows if self.rows is None else self.rows[rows], axis=0)

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """The pixels of all images, shape (N, C, H, W): the pool itself, or a copy of some of its rows."""
        return self.pool if self.rows is None else np.take(self.pool, self.rows, axis=0)


@dataclass(frozen=True)
class Dataset:
    """Training images, held-out images, and their common properties.

    Args:
        train: Training images, which are dealt to the clients.
        held_out: Images that the global model is evaluated on; they serve no other purpose.
        held_out_name: ``"test"`` or ``"validation"``.
        spec: Shape, number of classes and normalization of all images.
        class_names: Name of each class.
        column_values: Value that each code of a column stands for, by the column's name.
        notes: Sentences about what was left out when the data was read.
        remarks: Sentences about how the data was read: which folders or splits became training and test images.
    """

    train: Images
    held_out: Images
    held_out_name: Literal["test", "validation"]
    spec: ImageSpec
    class_names: tuple[str, ...]
    column_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
