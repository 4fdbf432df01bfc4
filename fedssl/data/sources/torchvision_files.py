"""The base class of sources that read the folder layouts of ``torchvision.datasets``."""

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
    """A source whose files torchvision reads, checks and fetches."""

    is_abstract: ClassVar[bool] = True
    cuts: ClassVar[frozenset[str]] = Source.cuts | {"download"}
    places: ClassVar[frozenset[str]] = frozenset({"root", "download"})

    root: Path = Field(
        Path("data"), description="folder that contains the data's own folder or files"
    )
    download: bool = Field(False, description="whether to fetch missing files from the network")

    @abstractmethod
    def describe_files(self) -> str:
        """Return a phrase that says which files to put where by hand; paths begin with ROOT."""

    def train_and_test(self, reader: str, what: str) -> tuple[Any, Any]:
        """Return training and test part from a reader that has an option ``train``; arguments as in `open`."""
        return self.open(reader, what, train=True), self.open(reader, what, train=False)

    def open(self, reader: str, what: str, **options: Any) -> Any:
        """Read the files under `root` with a reader of ``torchvision.datasets``, and return the reader.

        Args:
            reader: Name of a class of ``torchvision.datasets``; it is called with `root`, `download` and the options.
            what: Name of the data in the error message.
            options: Further arguments of the reader.

        Raises:
            InputError: torchvision is not installed; or a file is missing, damaged, or could not be fetched. The
                message says how to get it.
        """
        require("torchvision", "data.source", f"{self.kind!r}")
        from torchvision import datasets  # imported here because the import takes a second

        try:
            return getattr(datasets, reader)(str(self.root), download=self.download, **options)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            raise self.missing_error(what, error) from None

    def missing_error(self, what: str, problem: object) -> InputError:
        """Return the error that data is missing under `root` or cannot be read.

        Args:
            what: Name of the data.
            problem: Detail of the problem.
        """
        return InputError(
            "data.root",
            f"no readable {what} under {str(self.root.absolute())!r} ({problem})",
            f"pass --set data.download=true to fetch it, or put {self.describe_files()} "
            "and set data.root=ROOT",
        )


def gray_block(part: Any) -> Block:
    """Return gray images as torchvision keeps MNIST, tensors of shape (N, H, W), as one block."""
    return Block(part.data.numpy()[:, None], part.targets.numpy().astype(np.int64))


def color_block(part: Any) -> Block:
    """Return color images as torchvision keeps CIFAR, an array of shape (N, H, W, C), as one block."""
    return Block(part.data.transpose(0, 3, 1, 2), np.array(part.targets, dtype=np.int64))
