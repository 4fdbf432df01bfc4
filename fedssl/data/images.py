"""Images as they lie on disk, and views of them: rows of a pool that nobody copies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedssl.data.shard import ImageSpec

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

UNKNOWN = -1
"""Class of an image whose class nobody knows."""


@dataclass(frozen=True)
class Images:
    """Images, their true classes, and which of them may ever be given a label.

    Args:
        pool: uint8, shape (P, C, H, W); usually mapped from a file.
        labels: True class of each image, int64 (N,); -1 where nobody knows it.
        labelable: Whether an image may be given its label, (N,). The extra images of some data sets are
            not for labeling though their classes are known: these are for measuring pseudo-labels.
        columns: What else is known of each image, such as who made it, by name; int64 codes (N,).
        rows: Place of each image in the pool, int64 (N,); by default they are all of the pool.
    """

    pool: npt.NDArray[np.uint8]
    labels: Rows
    labelable: Mask
    columns: Mapping[str, Rows] = field(default_factory=dict)
    rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows) -> "Images":
        """Return the given images; the pool is shared."""
        return Images(
            self.pool,
            self.labels[rows],
            self.labelable[rows],
            {name: codes[rows] for name, codes in self.columns.items()},
            rows if self.rows is None else self.rows[rows],
        )

    def read(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """Return a copy of some images, shape (n, C, H, W)."""
        return np.take(self.pool, rows if self.rows is None else self.rows[rows], axis=0)

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """All images, shape (N, C, H, W): the pool itself, or a copy of its rows."""
        return self.pool if self.rows is None else np.take(self.pool, self.rows, axis=0)


@dataclass(frozen=True)
class Dataset:
    """Training images, held-out images, and what they have in common.

    Args:
        train: What is dealt to the clients.
        held_out: What the global model is evaluated on, and nothing else.
        held_out_name: ``"test"`` or ``"validation"``.
        spec: Shape, classes, normalization.
        class_names: One name a class.
        column_values: What the codes of each column stand for.
        notes: What was left out when the data was read, in words.
        remarks: How the data was read, in words: which folders or splits were taken for what.
    """

    train: Images
    held_out: Images
    held_out_name: Literal["test", "validation"]
    spec: ImageSpec
    class_names: tuple[str, ...]
    column_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
