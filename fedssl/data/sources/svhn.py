"""SVHN: color 32x32 photographs of house numbers, each centered on one of 10 digits.

Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS Workshop on Deep Learning and
Unsupervised Feature Learning, 2011.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from fedssl.data.shard import ImageSpec
from fedssl.data.sources.base import Dataset, Images, Source
from fedssl.data.sources.torchvision_files import read_files


class SVHN(Source):
    """73,257 training and 26,032 test images, and 531,131 easier extra ones, read from torchvision's layout.

    Class 0 is the digit 0, which the files call 10. Mean and deviation are the commonly published ones, not measured.
    """

    root: Path = Field(Path("data"), description="folder that holds train_32x32.mat")
    download: bool = Field(False, description="fetch what is missing from the network")
    extra: bool = Field(False, description="add the extra images to the training images")

    def load(self, seed: int) -> Dataset:
        """Return the images, shape (3, 32, 32); a mirrored digit is none, so they must not be flipped.

        Raises:
            InputError: The files are not under `root` and were not to be fetched, or cannot be read.
        """
        train = self._part("train")
        if self.extra:
            extra = self._part("extra")
            train = Images(
                np.concatenate([train.images, extra.images]),
                np.concatenate([train.labels, extra.labels]),
            )
        return Dataset(
            train=train,
            held_out=self._part("test"),
            held_out_name="test",
            spec=ImageSpec(
                (3, 32, 32),
                10,
                mean=(0.4377, 0.4438, 0.4728),
                std=(0.1980, 0.2010, 0.1970),
                flips=False,
            ),
            class_names=tuple(str(digit) for digit in range(10)),
        )

    def _part(self, split: Literal["train", "test", "extra"]) -> Images:
        from torchvision import datasets  # imported here: it takes a second

        part = read_files(
            datasets.SVHN,
            self.root,
            what=f"{split} images of SVHN",
            files=f"{split}_32x32.mat",
            folder="ROOT",
            split=split,
            download=self.download,
        )
        return Images(np.ascontiguousarray(part.data), part.labels)
