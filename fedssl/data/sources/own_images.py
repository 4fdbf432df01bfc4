"""Settings of sources whose images are a user's own: what they become, and what to do with those that cannot."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fedssl.core.errors import InputError
from fedssl.data.decode import Geometry
from fedssl.data.flaws import Flaws
from fedssl.data.formats import SYSTEM_FILES
from fedssl.data.sources.base import Source


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

    def expanded(self, name: str) -> Path:
        """Return the path that a name stands for, ``~`` being the home folder.

        Raises:
            InputError: There is no such home folder.
        """
        try:
            return Path(name).expanduser()
        except RuntimeError:  # of a user that nobody knows
            raise self.wrong("there is no home folder for '~'", "write the path in full") from None

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


def files_under(folder: str, root: str | None = None) -> Iterator[str]:
    """Yield the paths of the files at any depth of a folder, sorted by name; hidden ones are left out.

    Args:
        folder: Where to look.
        root: As in `entries_under`.
    """
    for entry in entries_under(folder, root):
        if not is_hidden(entry.name):
            yield entry.path


def entries_under(
    folder: str,
    root: str | None = None,
    flaws: Flaws | None = None,
    *,
    with_links: bool = False,
    inside: frozenset[str] = frozenset(),
) -> Iterator["os.DirEntry[str]"]:
    """Yield the files at any depth of a folder, and hidden folders, which are not looked into; sorted by name.

    Links are followed, but for those to another place of the data, which is looked into anyway: an image would be there twice,
    and under the class of another.

    Args:
        folder: Where to look.
        root: The whole data's folder, if that is another.
        flaws: Filled with links that are not followed.
        with_links: Whether to yield these, too.
        inside: The folders it lies in, without links: a link back to one of them is a circle, and not followed.
    """
    real = os.path.realpath(folder)
    if real in inside:
        return
    top = os.path.realpath(root) if root is not None else real
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink() and leads_back(entry.path, top):
            if flaws is not None:
                flaws.leave_out("links lead to another place of the same data", [entry.path])
            if with_links:
                yield entry
        elif is_folder(entry) and not is_hidden(entry.name):
            within = inside | {real}
            yield from entries_under(entry.path, top, flaws, with_links=with_links, inside=within)
        else:
            yield entry


def leads_back(path: str, top: str) -> bool:
    """Say whether a path is a link to another place of some data, where it is looked into or read under its own name.

    Args:
        path: Of a file or folder in it.
        top: The data's folder, without links.
    """
    if not os.path.islink(path) or not os.path.exists(path):  # noqa: PTH110, PTH114 - millions of paths
        return False
    real = os.path.realpath(path)
    if real == top:
        return True
    below = real.removeprefix(top.rstrip(os.sep) + os.sep)
    # What lies in a hidden folder, as git-annex keeps its files, is read by its links alone.
    return below != real and not any(is_hidden(part) for part in Path(below).parts)


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Say whether an entry is a folder, or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Say whether a file's or a folder's name hides it, or is one that operating systems leave in every folder."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES
