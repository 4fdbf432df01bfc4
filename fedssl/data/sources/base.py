"""What every source is: a section that loads training and held-out images."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl import rng
from fedssl.data.shard import ImageSpec
from fedssl.errors import InputError
from fedssl.registry import Family, Plugin


@dataclass(frozen=True)
class Images:
    """Images and their true classes.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> "Images":
        """Return the given rows, copied."""
        return Images(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """Training images, held-out images, and what they have in common.

    Args:
        train: What is dealt to the clients.
        held_out: What the global model is evaluated on, and nothing else.
        held_out_name: ``"test"`` or ``"validation"``.
        spec: Shape, classes, normalization.
        class_names: One name a class.
    """

    train: Images
    held_out: Images
    held_out_name: Literal["test", "validation"]
    spec: ImageSpec
    class_names: tuple[str, ...]


class Source(Plugin):
    """A data source; `load` reads it, `dataset` cuts it as the experiment says."""

    is_abstract: ClassVar[bool] = True

    train_size: int | None = Field(
        None, ge=1, description="training images to use, drawn by the seed; unset: all"
    )
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training images held out and evaluated on INSTEAD of the test images: "
        "for choosing settings without looking at the test set",
    )

    @abstractmethod
    def load(self, seed: int) -> Dataset:
        """Return the whole data set; the seed decides the split where the data has none of its own.

        Raises:
            InputError: The data is not there; the message says how to get it.
        """

    def dataset(self, seed: int) -> Dataset:
        """Return the data set, with the training images cut to `train_size` and `validation`.

        Raises:
            InputError: As `load`, or `train_size` is more than there is.
        """
        data = self.load(seed)
        order = rng.numpy_generator(seed, "data/order").permutation(len(data.train))
        num_held_out = round(self.validation * len(order))
        if self.validation and num_held_out == 0:
            problem = f"is {self.validation:g}, which is none of {len(order)} images"
            raise InputError(
                "data.validation", problem, "raise it, or leave it out to use test images"
            )
        held_out, rest = order[:num_held_out], order[num_held_out:]
        if self.train_size is not None and self.train_size > len(rest):
            raise InputError("data.train_size", f"is {self.train_size}, but there are {len(rest)}")
        kept = np.sort(rest[: self.train_size])
        if num_held_out:
            data = replace(
                data,
                held_out=data.train.take(np.sort(held_out)),
                held_out_name="validation",
            )
        if len(kept) < len(order):
            data = replace(data, train=data.train.take(kept))
        return data


SOURCES = Family("data source", "fedssl.data.sources", Source, "data", default=None, key="source")
