"""STL-10: color 96x96 photographs, 13,000 of 10 classes and 100,000 that nobody labeled.

Coates, Lee & Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS, 2011.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.torchvision_files import TorchvisionFiles

SHAPE = (3, 96, 96)

IMAGES_AT_ONCE = 1000
"""Unlabeled images read in one go: 28 MB of 2.8 GB."""


class STL10(TorchvisionFiles):
    """5,000 training and 8,000 test images, and 100,000 unlabeled ones, read from torchvision's folder layout.

    The unlabeled images also show animals and vehicles of other classes; their label is -1.
    """

    unlabeled: bool = Field(
        True, description="whether to train on the 100,000 unlabeled images too"
    )

    def wanted(self) -> str:
        """Say which files to put where."""
        return "the files of stl10_binary.tar.gz (train_X.bin, ...) in ROOT/stl10_binary"

    def read(self) -> Raw:
        """Return the images, shape (3, 96, 96); mean and deviation are measured on the training images.

        Raises:
            InputError: The files are not under `root` and were not to be fetched, or cannot be read.
        """
        train = self.open("STL10", "STL-10", split="train")
        test = self.open("STL10", "STL-10", split="test")
        folder = Path(self.root, train.base_folder)
        if not (folder / train.class_names_file).is_file():  # torchvision goes on without
            raise self.missing("STL-10", f"there is no {train.class_names_file}")
        return Raw(
            class_names=tuple(train.classes),
            train=self._train(train, folder / "unlabeled_X.bin"),
            test=[_labeled(test)],
            flips=True,
        )

    def _train(self, train: Any, unlabeled: Path) -> Iterator[Block]:
        yield _labeled(train)
        if self.unlabeled:
            yield from _parts(unlabeled)


def _labeled(part: Any) -> Block:
    return Block(part.data, part.labels.astype(np.int64))


def _parts(path: Path) -> Iterator[Block]:
    """Yield unlabeled images one part of their file at a time; torchvision's reader would hold all of them."""
    with path.open("rb") as file:
        while len(pixels := np.fromfile(file, np.uint8, IMAGES_AT_ONCE * int(np.prod(SHAPE)))):
            images = pixels.reshape(-1, *SHAPE).transpose(0, 1, 3, 2)  # the file's are by column
            yield Block(images, np.full(len(images), UNKNOWN))
