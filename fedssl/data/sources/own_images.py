"""The base classes of sources that read a user's own images, and functions that walk through a folder."""

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
from fedssl.data.target import Reading


class OwnImages(Source):
    """A source of images that nobody has checked yet, so that some of them may be unusable."""

    is_abstract: ClassVar[bool] = True

    flips: bool = Field(True, description="whether a mirrored image still shows the same class")
    bad_images: Literal["refuse", "skip"] = Field(
        "refuse",
        description="what to do with images that cannot be read or do not fit, and with classes without images: "
        "refuse stops with a message that names them, skip leaves them out",
    )

    @property
    def skips_bad_images(self) -> bool:
        """Whether to leave out images that cannot be used; otherwise they are refused."""
        return self.bad_images == "skip"

    def expand_home(self, name: str) -> Path:
        """Return a path in which ``~`` is replaced by the home folder.

        Raises:
            InputError: There is no such home folder.
        """
        try:
            return Path(name).expanduser()
        except RuntimeError:  # the system does not know the user
            raise self.source_error(
                "there is no home folder for '~'", "write the path in full"
            ) from None

    def not_found_error(self, what: str, name: str) -> InputError:
        """Return the error that nothing is at a path; it names the absolute paths that were tried.

        Args:
            what: ``"file"`` or ``"folder"``.
            name: The path as the user gave it.
        """
        path = self.expand_home(name)
        tried = [folder / path for folder in self.searched] or [path.absolute()]
        paths = " and ".join(dict.fromkeys(map(str, tried)))
        said = "" if Path(name).is_absolute() else f" (tried {paths})"
        return self.source_error(f"there is no such {what}{said}", "check the path")

    def source_error(self, problem: str, remedy: str = "") -> InputError:
        """Return an error about this source, under the name that the user gave it.

        Args:
            problem: What is wrong with the data.
            remedy: What to do; empty if the problem says it.
        """
        return InputError("data.source", f"{self.kind}: {problem}", remedy)


class EncodedImages(OwnImages):
    """A source of encoded images, such as PNG and JPEG, in files of their own or inside of other files."""

    is_abstract: ClassVar[bool] = True

    size: int | tuple[int, int] | None = Field(
        None,
        description="side of the images in pixels, or [height, width]: images are scaled, and their longer side is "
        "cut; unset: all images have one size already",
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="1 for gray or 3 for color: images are converted; unset: all images have the same already",
    )

    intensities: tuple[float, float] | None = Field(
        None,
        description="[LOW, HIGH], the values that become 0 and 255 in gray images of more than 8 bits (16-bit PNG and TIFF, "
        "DICOM after rescaling); unset: each image by itself, by its window (DICOM) or from its least to its greatest value",
    )
    frames: Literal["refuse", "first", "middle", "all"] = Field(
        "refuse",
        description="what to read of a file with several frames (pages of a TIFF file, slices of a DICOM file, an "
        "animation): refuse stops with a message; all makes each frame an image of the file's class",
    )

    @model_validator(mode="after")
    def _check(self) -> "EncodedImages":
        if self.size is not None and min(self.geometry.size or (0,)) < 1:
            raise ValueError(f"size = {self.size}; a side has at least one pixel")
        if self.intensities is not None and not self.intensities[0] < self.intensities[1]:
            raise ValueError(f"intensities = {list(self.intensities)}; LOW must be below HIGH")
        return self

    @property
    def geometry(self) -> Geometry:
        """The size and channels that every image is to get, as far as they are set, and how files become images."""
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        return Geometry(size, self.channels, Reading(self.intensities, self.frames))


def reading_of(source: object) -> Reading:
    """Return how the files of a source become images of 8 bits; the files that clients bring do in the same way."""
    return source.geometry.reading if isinstance(source, EncodedImages) else Reading()


def files_under(folder: str, root: str | None = None) -> Iterator[str]:
    """Yield the paths of the files at any depth of a folder, sorted by name, without hidden files.

    Args:
        folder: The folder to look into.
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
    """Yield the files at any depth of a folder, sorted by name; hidden folders are yielded too, but not looked into.

    Links are followed, except links to another place of the same data. That place is looked into anyway, so its images
    would be there twice, and perhaps under the wrong class.

    Args:
        folder: The folder to look into.
        root: The folder of the whole data; by default it is `folder`.
        flaws: Filled with links that are not followed.
        with_links: Whether to yield links that are not followed, too.
        inside: Real paths of the folders that contain `folder`; a link back to one of them would be a circle, so it is
            not followed.
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
    """Say whether a path is a link to another place of the same data, which is read there anyway.

    Args:
        path: Path of a file or folder in the data.
        top: Real path of the data's folder.
    """
    if not os.path.islink(path) or not os.path.exists(path):  # noqa: PTH110, PTH114 - there may be millions of paths
        return False
    real = os.path.realpath(path)
    if real == top:
        return True
    below = real.removeprefix(top.rstrip(os.sep) + os.sep)
    # Files in a hidden folder, where git-annex keeps them, are only reached by their links: these are followed.
    return below != real and not any(is_hidden(part) for part in Path(below).parts)


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Say whether an entry is a folder or a link to a folder; a link to itself is no folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Say whether the name of a file or folder hides it, or is a name that operating systems leave in every folder."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES
