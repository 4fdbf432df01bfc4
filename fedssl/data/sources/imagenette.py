"""Imagenette: 13,394 photographs of ten easily told classes of ImageNet.

Howard, "Imagenette: a smaller subset of 10 easily classified classes from Imagenet", 2019,
https://github.com/fastai/imagenette.
"""

from collections.abc import Mapping
from typing import ClassVar

from fedssl.data.sources.fastai_subset import FastaiSubset


class Imagenette(FastaiSubset):
    """9,469 training and 3,925 test images (its split ``val``), read from their folders and scaled."""

    archive: ClassVar[str] = "imagenette2"
    checksums: ClassVar[Mapping[str, str]] = {
        "160px": "e793b78cc4c9e9a4ccc0c1155377a412",
        "320px": "3df6f0d01a2c9592104656642f5e78a3",
    }

    def names(self) -> Mapping[str, str]:
        """Return the name of each class by its WordNet id."""
        return {
            "n01440764": "tench",
            "n02102040": "English springer",
            "n02979186": "cassette player",
            "n03000684": "chain saw",
            "n03028079": "church",
            "n03394916": "French horn",
            "n03417042": "garbage truck",
            "n03425413": "gas pump",
            "n03445777": "golf ball",
            "n03888257": "parachute",
        }
