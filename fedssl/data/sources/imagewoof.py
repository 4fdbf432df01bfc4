"""Imagewoof: 12,954 photographs of ten breeds of dogs of ImageNet, which are hard to tell apart.

Howard, "Imagewoof: a subset of 10 classes from Imagenet that aren't so easy to classify", 2019,
https://github.com/fastai/imagenette#imagewoof.
"""

from collections.abc import Mapping
from typing import ClassVar

from fedssl.data.sources.fastai_subset import FastaiSubset


class Imagewoof(FastaiSubset):
    """9,025 training and 3,929 test images (its split ``val``), read from their folders and scaled.

    No library publishes a checksum of its archives. An archive that `download` fetched is checked by its ten folders,
    and by reading all of its images.
    """

    archive: ClassVar[str] = "imagewoof2"

    def names(self) -> Mapping[str, str]:
        """Return the name of each class by its WordNet id."""
        return {
            "n02086240": "Shih-Tzu",
            "n02087394": "Rhodesian ridgeback",
            "n02088364": "beagle",
            "n02089973": "English foxhound",
            "n02093754": "Border terrier",
            "n02096294": "Australian terrier",
            "n02099601": "golden retriever",
            "n02105641": "Old English sheepdog",
            "n02111889": "Samoyed",
            "n02115641": "dingo",
        }
