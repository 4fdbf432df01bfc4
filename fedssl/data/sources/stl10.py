"""STL-10: color 96x96 photographs, 13,000 labeled ones of 10 classes and 100,000 unlabeled ones.

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
"""Shape of an image, (C, H, W)."""

IMAGES_AT_ONCE = 1000
"""Number of unlabeled images read at once: 28 MB of a file of 2.8 GB."""


class STL10(TorchvisionFiles):
    """5,000 training and 8,000 test images, and 100,000 unlabeled ones, read from torchvision's folder layout.

    The unlabeled images also show animals and vehicles of other classes; their label is -1.
    """

    unlabeled: bool = Field(
        True, description="whether to train on the 100,000 unlabeled images too"
    )

    def describe_files(self) -> str:
        """Return a phrase that says which files to put where."""
        return "the files of stl10_binary.tar.gz (train_X.bin, ...) in ROOT/stl10_binary"

    def read(self) -> Raw:
        """Return the images, shape (3, 96, 96); mean and standard deviation are measured on the training images.

        Raises:
            InputError: The files are not under `root` and `download` is false, or the files cannot be read.
        """
        train = self.open("STL10", "STL-10", split="train")
        test = self.open("STL10", "STL-10", split="test")
        folder = Path(self.root, train.base_folder)
        if not (folder / train.class_names_file).is_file():  # torchvision goes on without names
            raise self.missing_error("STL-10", f"there is no {train.class_names_file}")
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
    """Yield the unlabeled images, some at a time; torchvision's reader would hold all of them in memory."""
    with path.open("rb") as file:
        while len(pixels := np.fromfile(file, np.uint8, IMAGES_AT_ONCE * int(np.prod(SHAPE)))):
            images = pixels.reshape(-1, *SHAPE).transpose(
                0, 1, 3, 2
            )  # the file stores images column by column
            yield Block(images, np.full(len(images), UNKNOWN))
