"""scikit-learn's 1,797 handwritten digits, 8x8 gray, embedded in the library: real data without a download.

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

import numpy as np

from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.sources.base import Source


class Digits(Source):
    """The digits, 80 % to train and 20 % to test, stratified, split by the experiment's seed."""

    def read(self) -> Raw:
        """Return 1,797 images, shape (1, 8, 8), levels 0-16 scaled to 0-255."""
        from sklearn.datasets import load_digits  # imported here: it takes a second

        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        return Raw(
            class_names=tuple(str(digit) for digit in range(10)),
            train=[Block(images, bunch.target.astype(np.int64))],
            test=None,
            flips=False,
            mean=(0.305,),
            std=(0.376,),
        )
