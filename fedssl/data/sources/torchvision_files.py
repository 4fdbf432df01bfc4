"""Data sets in the folder layouts of ``torchvision.datasets``: what their sources share."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from fedssl.core.errors import InputError
from fedssl.core.extras import require
from fedssl.data.blocks import Block
from fedssl.data.sources.base import Source


class TorchvisionFiles(Source):
    """A source whose files torchvision knows how to read, check and fetch."""

    is_abstract: ClassVar[bool] = True
    cuts: ClassVar[frozenset[str]] = Source.cuts | {"download"}
    places: ClassVar[frozenset[str]] = frozenset({"root", "download"})

    root: Path = Field(Path("data"), description="folder that holds the data's own folder or files")
    download: bool = Field(False, description="fetch what is missing from the network")

    @abstractmethod
    def wanted(self) -> str:
        """Say which files to put where by hand, from ROOT on."""

    def train_and_test(self, reader: str, what: str) -> tuple[Any, Any]:
        """Return both parts of a data set whose reader tells them apart by ``train``; arguments as in `open`."""
        return self.open(reader, what, train=True), self.open(reader, what, train=False)

    def open(self, reader: str, what: str, **options: Any) -> Any:
        """Return what a reader of ``torchvision.datasets`` makes of the files under `root`.

        Args:
            reader: Name of a class of ``torchvision.datasets``; called with `root`, `download` and the options.
            what: Name of the data in the error.
            options: Passed to the reader.

        Raises:
            InputError: torchvision is not installed; or a file is missing, damaged, or could not be fetched. Says how to
                get it.
        """
        require("torchvision", "data.source", f"{self.kind!r}")
        from torchvision import datasets  # imported here: it takes a second

        try:
            return getattr(datasets, reader)(str(self.root), download=self.download, **options)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            raise self.missing(what, error) from None

    def missing(self, what: str, problem: object) -> InputError:
        """Return the error that some data is not under `root`, or not as it should be."""
        return InputError(
            "data.root",
            f"no readable {what} under {str(self.root)!r} ({problem})",
            f"pass --set data.download=true to fetch it, or put {self.wanted()} "
            "and set data.root=ROOT",
        )


def gray_block(part: Any) -> Block:
    """Return the images of torchvision's MNIST kind, tensors of shape (N, H, W), as one block."""
    return Block(part.data.numpy()[:, None], part.targets.numpy().astype(np.int64))


def color_block(part: Any) -> Block:
    """Return the images of torchvision's CIFAR kind, an array of shape (N, H, W, C), as one block."""
    return Block(part.data.transpose(0, 3, 1, 2), np.array(part.targets, dtype=np.int64))
