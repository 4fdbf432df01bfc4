"""Imagenette: 13,394 photographs of ten easily told classes of ImageNet.

Howard, "Imagenette: a smaller subset of 10 easily classified classes from Imagenet", 2019,
https://github.com/fastai/imagenette. This is its second version, which has the 70/30 split.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.decode import Encoded, Geometry, decode_parts
from fedssl.data.flaws import Flaws
from fedssl.data.sources.torchvision_files import TorchvisionFiles


class Imagenette(TorchvisionFiles):
    """9,469 training and 3,925 test images (its split ``val``), read from torchvision's folder layout and scaled."""

    size: Literal["160px", "320px"] = Field(
        "160px", description="archive to read, named by the shorter side of its images"
    )
    pixels: int = Field(
        96,
        ge=1,
        description="side of the images in pixels: images are scaled, and their longer side is cut",
    )

    def describe_files(self) -> str:
        """Return a phrase that says which files to put where."""
        folder = f"imagenette2-{self.size.removesuffix('px')}"
        return f"the folder {folder} of {folder}.tgz in ROOT"

    def read(self) -> Raw:
        """Return the images, shape (3, pixels, pixels); mean and deviation are measured on the training images.

        Raises:
            InputError: The files are not under `root` and `download` is false, or the files cannot be read.
        """
        train, test = self._images("train"), self._images("val")
        parts = {"train": lambda: _items(train), "test": lambda: _items(test)}
        flaws = Flaws()
        blocks = decode_parts(parts, Geometry((self.pixels, self.pixels), 3), flaws)
        return Raw(
            class_names=tuple(names[0] for names in train.classes),
            train=self._whole_part(blocks["train"], flaws),
            test=self._whole_part(blocks["test"], flaws),
            flips=True,
        )

    def _images(self, split: Literal["train", "val"]) -> Any:
        return self.open("Imagenette", "Imagenette", split=split, size=self.size, loader=str)

    def _whole_part(self, blocks: Iterator[Block], flaws: Flaws) -> Iterator[Block]:
        """Yield the blocks, and refuse images that cannot be read, because the published files are all readable."""
        yield from blocks
        if flaws.notes():
            raise self.missing_error("Imagenette", "; ".join(flaws.notes()))


def _items(split: Any) -> Iterator[Encoded]:
    """Yield the files of a split; its loader was set to return paths and not to open images."""
    for path, label in (split[i] for i in range(len(split))):
        yield Encoded("/".join(Path(path).parts[-3:]), path, label)
