"""The base class of fastai's subsets of ImageNet: ten classes each, in one folder for each split and class.

Howard, "Imagenette: a smaller subset of 10 easily classified classes from Imagenet", 2019,
https://github.com/fastai/imagenette. The sources read the second versions, which have the 70/30 split.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from fedssl.core.extras import require
from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.decode import Geometry, decode_parts
from fedssl.data.flaws import Flaws
from fedssl.data.sources.torchvision_files import TorchvisionFiles
from fedssl.data.target import Encoded

SITE = "https://s3.amazonaws.com/fast-ai-imageclas"
"""Where the archives are published."""

Size = Literal["160px", "320px"]


class FastaiSubset(TorchvisionFiles):
    """A training and a test part (its split ``val``) of ten classes, which are scaled to squares.

    A subclass sets `archive`, and returns the names of its classes.
    """

    is_abstract: ClassVar[bool] = True
    archive: ClassVar[str]
    """Name of the full-size archive, to which a size is added."""
    checksums: ClassVar[Mapping[str, str]] = {}
    """MD5 of the archive of each size, where a well-kept library publishes it; another archive is not checked."""

    size: Size = Field(
        "160px", description="archive to read, named by the shorter side of its images"
    )
    pixels: int = Field(
        96,
        ge=1,
        description="side of the images in pixels: images are scaled, and their longer side is cut",
    )

    @abstractmethod
    def names(self) -> Mapping[str, str]:
        """Return the name of each class by its folder, which is its WordNet id."""

    def describe_files(self) -> str:
        """Return a phrase that says which files to put where."""
        return f"the folder {self._folder} of {SITE}/{self._folder}.tgz in ROOT"

    def read(self) -> Raw:
        """Return the images, shape (3, pixels, pixels); mean and deviation are measured on the training images.

        Raises:
            InputError: The files are not under `root` and `download` is false, or the files cannot be read.
        """
        train, test = self._files("train"), self._files("val")
        flaws = Flaws()
        parts = {"train": lambda: _items(train), "test": lambda: _items(test)}
        blocks = decode_parts(parts, Geometry((self.pixels, self.pixels), 3), flaws)
        return Raw(
            class_names=tuple(name for _, name in sorted(self.names().items())),
            train=self._whole_part(blocks["train"], flaws),
            test=self._whole_part(blocks["test"], flaws),
            flips=True,
        )

    @property
    def _folder(self) -> str:
        return f"{self.archive}-{self.size.removesuffix('px')}"

    def _files(self, split: Literal["train", "val"]) -> list[tuple[str, int]]:
        """Return the path and the class of each image of a split, in order; fetch the archive if it is asked for."""
        require("torchvision", "data.source", f"{self.kind!r}")
        from torchvision import datasets  # imported here because the import takes a second

        folder = self.root / self._folder
        try:
            if self.download and not folder.exists():
                address, checksum = f"{SITE}/{self._folder}.tgz", self.checksums.get(self.size)
                datasets.utils.download_and_extract_archive(address, str(self.root), md5=checksum)
            found: Any = datasets.ImageFolder(str(folder / split))
        except (RuntimeError, OSError, ValueError) as error:
            raise self.missing_error(type(self).__name__, error) from None
        if found.classes != sorted(self.names()):
            problem = f"{split} has the folders {', '.join(found.classes)}"
            raise self.missing_error(type(self).__name__, problem)
        files: list[tuple[str, int]] = found.samples
        return files

    def _whole_part(self, blocks: Iterator[Block], flaws: Flaws) -> Iterator[Block]:
        """Yield the blocks, and refuse images that cannot be read, because the published files are all readable."""
        yield from blocks
        if flaws.notes():
            raise self.missing_error(type(self).__name__, "; ".join(flaws.notes()))


def _items(files: list[tuple[str, int]]) -> Iterator[Encoded]:
    for path, label in files:
        yield Encoded("/".join(Path(path).parts[-3:]), path, label)
