"""SVHN: color 32x32 photographs of house numbers, each centered on one of 10 digits.

Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS Workshop on Deep Learning and
Unsupervised Feature Learning, 2011.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.sources.torchvision_files import TorchvisionFiles


class SVHN(TorchvisionFiles):
    """73,257 training and 26,032 test images, and 531,131 easier extra ones, read from torchvision's layout.

    Class 0 is the digit 0, which the files call 10. Mean and standard deviation are the commonly published values; they
    are not measured.
    """

    extra: Literal["none", "unlabeled", "labeled"] = Field(
        "none",
        description="what to do with the extra images: none leaves them out, unlabeled adds them without labels, "
        "labeled adds them like the training images",
    )

    def describe_files(self) -> str:
        """Return a phrase that says which files to put where."""
        return "train_32x32.mat, test_32x32.mat and, for the extra images, extra_32x32.mat in ROOT"

    def read(self) -> Raw:
        """Return the images, shape (3, 32, 32); a mirrored digit is no digit, so the images must not be flipped.

        Raises:
            InputError: The files are not under `root` and `download` is false, or the files cannot be read.
        """
        return Raw(
            class_names=tuple(str(digit) for digit in range(10)),
            train=self._train(),
            test=[self._block("test", labelable=True)],
            flips=False,
            mean=(0.4377, 0.4438, 0.4728),
            std=(0.1980, 0.2010, 0.1970),
        )

    def _train(self) -> Iterator[Block]:
        yield self._block("train", labelable=True)
        if self.extra != "none":
            yield self._block("extra", labelable=self.extra == "labeled")

    def _block(self, split: Literal["train", "test", "extra"], *, labelable: bool) -> Block:
        part = self.open("SVHN", f"{split} images of SVHN", split=split)
        labels = part.labels.astype(np.int64)
        return Block(part.data, labels, np.full(len(labels), labelable, np.bool_))
