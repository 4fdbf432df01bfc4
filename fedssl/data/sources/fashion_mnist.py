"""Fashion-MNIST: 70,000 gray 28x28 images of clothing in 10 classes.

Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017,
arXiv:1708.07747.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from fedssl.data.shard import ImageSpec
from fedssl.data.sources.base import Dataset, Images, Source
from fedssl.data.sources.torchvision_files import read_files


class FashionMNIST(Source):
    """60,000 training and 10,000 test images, read from torchvision's folder layout."""

    root: Path = Field(Path("data"), description="folder that holds FashionMNIST/raw")
    download: bool = Field(False, description="fetch what is missing from the network")

    def load(self, seed: int) -> Dataset:
        """Return the images, shape (1, 28, 28).

        Raises:
            InputError: The files are not under `root` and were not to be fetched, or cannot be read.
        """
        train, names = self._part(train=True)
        test, _ = self._part(train=False)
        return Dataset(
            train=train,
            held_out=test,
            held_out_name="test",
            spec=ImageSpec((1, 28, 28), 10, mean=(0.2860,), std=(0.3530,), flips=True),
            class_names=names,
        )

    def _part(self, *, train: bool) -> tuple[Images, tuple[str, ...]]:
        from torchvision import datasets  # imported here: it takes a second

        part = read_files(
            datasets.FashionMNIST,
            self.root,
            what="Fashion-MNIST",
            files="torchvision's four files (train-images-idx3-ubyte, ...)",
            folder="ROOT/FashionMNIST/raw",
            train=train,
            download=self.download,
        )
        images = Images(part.data.numpy()[:, None], part.targets.numpy().astype(np.int64))
        return images, tuple(part.classes)
