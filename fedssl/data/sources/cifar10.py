"""CIFAR-10: 60,000 color 32x32 photographs in 10 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from fedssl.data.shard import ImageSpec
from fedssl.data.sources.base import Dataset, Images, Source
from fedssl.data.sources.torchvision_files import read_files


class CIFAR10(Source):
    """50,000 training and 10,000 test images, read from torchvision's folder layout.

    Mean and deviation were measured on all training images of a copy re-encoded as JPEG, which smooths: the deviation
    commonly published for the original is (0.2470, 0.2435, 0.2616), at most 0.7 % larger.
    """

    root: Path = Field(Path("data"), description="folder that holds cifar-10-batches-py")
    download: bool = Field(False, description="fetch what is missing from the network")

    def load(self, seed: int) -> Dataset:
        """Return the images, shape (3, 32, 32).

        Raises:
            InputError: The files are not under `root` and were not to be fetched, or cannot be read.
        """
        train, names = self._part(train=True)
        test, _ = self._part(train=False)
        return Dataset(
            train=train,
            held_out=test,
            held_out_name="test",
            spec=ImageSpec(
                (3, 32, 32),
                10,
                mean=(0.4913, 0.4821, 0.4465),
                std=(0.2452, 0.2428, 0.2606),
                flips=True,
            ),
            class_names=names,
        )

    def _part(self, *, train: bool) -> tuple[Images, tuple[str, ...]]:
        from torchvision import datasets  # imported here: it takes a second

        part = read_files(
            datasets.CIFAR10,
            self.root,
            what="CIFAR-10",
            files="the files of cifar-10-python.tar.gz (data_batch_1, ...)",
            folder="ROOT/cifar-10-batches-py",
            train=train,
            download=self.download,
        )
        images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        return Images(images, np.array(part.targets, dtype=np.int64)), tuple(part.classes)
