"""Settings of sources whose images are a user's own: what they become, and what to do with those that cannot."""

import os
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fedssl.data.decode import Geometry
from fedssl.data.formats import SYSTEM_FILES
from fedssl.data.sources.base import Source
from fedssl.errors import InputError


class OwnImages(Source):
    """A source of images that nobody has looked through yet."""

    is_abstract: ClassVar[bool] = True

    flips: bool = Field(True, description="whether a mirrored image still shows the same class")
    bad_images: Literal["refuse", "skip"] = Field(
        "refuse",
        description="what to do about images that cannot be read or do not fit, and classes without any",
    )

    @property
    def skips_bad_images(self) -> bool:
        """Whether to go on without images that cannot be used."""
        return self.bad_images == "skip"

    def wrong(self, problem: str, remedy: str = "") -> InputError:
        """Return the error that the data as the user named it is not what it should be."""
        return InputError("data.source", f"{self.kind}: {problem}", remedy)


class EncodedImages(OwnImages):
    """A source of PNG, JPEG or other files, on disk or inside of others."""

    is_abstract: ClassVar[bool] = True

    size: int | tuple[int, int] | None = Field(
        None,
        description="pixels of the sides, or [height, width]: images are scaled, and cut at the longer side, to it; "
        "unset: all have one size already",
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="1 gray or 3 colors: images are converted; unset: all have the same already",
    )

    @model_validator(mode="after")
    def _check(self) -> "EncodedImages":
        if self.size is not None and min(self.geometry.size or (0,)) < 1:
            raise ValueError(f"size = {self.size}; a side has at least one pixel")
        return self

    @property
    def geometry(self) -> Geometry:
        """What every image is to be."""
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        return Geometry(size, self.channels)


def files_under(folder: str, inside: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the paths of the files at any depth of a folder, sorted by name; hidden ones are left out.

    Args:
        folder: Where to look. Links are followed.
        inside: The folders it lies in, without links: a link back to one of them is a circle, and not followed.
    """
    for entry in entries_under(folder, inside):
        if not is_hidden(entry.name):
            yield entry.path


def entries_under(
    folder: str, inside: frozenset[str] = frozenset()
) -> Iterator["os.DirEntry[str]"]:
    """Yield the files at any depth of a folder, and hidden folders, which are not looked into; sorted by name.

    Args:
        folder: Where to look. Links are followed.
        inside: The folders it lies in, without links: a link back to one of them is a circle, and not followed.
    """
    real = os.path.realpath(folder)
    if real in inside:
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir() and not is_hidden(entry.name):
            yield from entries_under(entry.path, inside | {real})
        else:
            yield entry


def is_hidden(name: str) -> bool:
    """Say whether a file's or a folder's name hides it, or is one that operating systems leave in every folder."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES
