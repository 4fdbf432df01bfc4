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
class Pools:
    """Several pools one after the other; their pixels stay where they are, mapped from a file each.

    Args:
        parts: uint8, each of shape (P, C, H, W), all with the same C, H and W.
    """

    parts: tuple[npt.NDArray[np.uint8], ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def take(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """Return a copy of the pixels in the given rows, shape (n, C, H, W)."""
        starts = np.cumsum([0, *map(len, self.parts)])
        taken = np.empty((len(rows), *self.parts[0].shape[1:]), np.uint8)
        for part, start, stop in zip(self.parts, starts, starts[1:], strict=False):
            here = (start <= rows) & (rows < stop)
            taken[here] = part[rows[here] - start]
        return taken


@dataclass(frozen=True)
class Images:
    """Images, their true classes, and which of them may ever be given a label.

    Args:
        pool: uint8, shape (P, C, H, W); usually mapped from a file. The pools of several data sets may be joined.
        labels: True class of each image, int64 (N,); -1 where nobody knows the class.
        labelable: Whether an image may be given its label, (N,). The extra images of some data sets are never given
            their label, though their classes are known: these classes only measure pseudo-labels.
        columns: Further facts about each image, such as its maker, by the column's name; int64 codes (N,).
        rows: Place of each image in the pool, int64 (N,); by default the images are the whole pool.
    """

    pool: npt.NDArray[np.uint8] | Pools
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
        places = rows if self.rows is None else self.rows[rows]
        if isinstance(self.pool, Pools):
            return self.pool.take(places)
        return np.take(self.pool, places, axis=0)

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """The pixels of all images, shape (N, C, H, W): the pool itself, or a copy of some of its rows."""
        if self.rows is None and not isinstance(self.pool, Pools):
            return self.pool
        return self.read(np.arange(len(self)))


def join_images(parts: Sequence[Images]) -> Images:
    """Return the images of several data sets one after the other, without their columns; no pixel is copied."""
    pools = [part.pool for part in parts]
    assert not any(isinstance(pool, Pools) for pool in pools)
    starts = np.cumsum([0, *map(len, pools)])
    rows = [
        start + (np.arange(len(part)) if part.rows is None else part.rows)
        for start, part in zip(starts, parts, strict=False)
    ]
    return Images(
        Pools(tuple(pool for pool in pools if not isinstance(pool, Pools))),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.labelable for part in parts]),
        rows=np.concatenate(rows),
    )


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
