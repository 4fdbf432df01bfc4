"""1,797 handwritten digits, 8x8 gray, embedded in this package: real data without a download.

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49, CC BY 4.0: its test part, in the order of scikit-learn's ``load_digits``.
"""

import json
from pathlib import Path

import numpy as np

from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.sources.base import Source

FILE = Path(__file__).with_suffix(".json")  # JSON, for Flower's bundles leave other data out (1.41)
SIGNS = "0123456789abcdefg"
"""How the file writes the levels 0 to 16."""


class Digits(Source):
    """The digits, 80 % to train and 20 % to test, stratified, split by the experiment's seed."""

    def read(self) -> Raw:
        """Return 1,797 images, shape (1, 8, 8), levels 0-16 scaled to 0-255."""
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
