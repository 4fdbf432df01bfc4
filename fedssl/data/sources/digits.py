"""scikit-learn's 1,797 handwritten digits, 8x8 gray, embedded in the library: real data without a download.

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fedssl import rng
from fedssl.data.shard import ImageSpec
from fedssl.data.sources.base import Dataset, Images, Source


class Digits(Source):
    """The digits, 80 % to train and 20 % to test, stratified, split by the experiment's seed."""

    def load(self, seed: int) -> Dataset:
        """Return 1,437 training and 360 test images, shape (1, 8, 8), levels 0-16 scaled to 0-255."""
        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = bunch.target.astype(np.int64)
        rows = np.arange(len(labels))
        train, test = train_test_split(
            rows,
            test_size=0.2,
            stratify=labels,
            random_state=rng.derive_seed(seed, "data/split") % 2**32,
        )
        everything = Images(images, labels)
        return Dataset(
            train=everything.take(np.sort(train)),
            held_out=everything.take(np.sort(test)),
            held_out_name="test",
            spec=ImageSpec((1, 8, 8), 10, mean=(0.305,), std=(0.376,), flips=False),
            class_names=tuple(str(digit) for digit in range(10)),
        )
