"""Digits: 1,797 gray 8x8 images of handwritten digits in 10 classes, which this package contains.

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49, CC BY 4.0. These images are its test part, in the order of scikit-learn's ``load_digits``.
"""

import json
from pathlib import Path

import numpy as np

from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.sources.base import Source

FILE = Path(__file__).with_suffix(".json")
"""The file of images; it is JSON because Flower's bundles leave other data files out (Flower 1.41)."""

SIGNS = "0123456789abcdefg"
"""The file writes each gray level, 0 to 16, as one of these characters."""


class Digits(Source):
    """1,797 digits; by default the experiment's seed draws 20 % of each class for test."""

    def read(self) -> Raw:
        """Return 1,797 images, shape (1, 8, 8), with the levels 0 to 16 scaled to 0 to 255."""
        written = json.loads(FILE.read_text(encoding="ascii"))
        level_of = {sign: level for level, sign in enumerate(SIGNS)}
        levels = np.array([[level_of[sign] for sign in image] for image in written["images"]])
        images = np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        labels = np.array([int(label) for label in written["labels"]], dtype=np.int64)
        return Raw(
            class_names=tuple(str(digit) for digit in range(10)),
            train=[Block(images, labels)],
            test=None,
            flips=False,
            mean=(0.305,),
            std=(0.376,),
        )
