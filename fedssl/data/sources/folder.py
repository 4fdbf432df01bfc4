"""A user's own folder of image files: ``source = "folder:PATH"``."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from pydantic import Field

from fedssl.data.cache import Raw
from fedssl.data.decode import Encoded, Parts, decode_parts
from fedssl.data.flaws import Flaws
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.own_images import EncodedImages, files_under

UNLABELED = "unlabeled"
"""Subfolder of images whose class nobody knows."""

TEST_FOLDERS = ("test", "val", "validation")


class Folder(EncodedImages):
    """One subfolder a class, and ``unlabeled`` for images without; or these under ``train`` and ``test``.

    Of several folders for test only the first of ``test``, ``val`` and ``validation`` is read: data.validation holds
    training images out to choose settings by.

    Images may lie at any depth below their class; the folders between are the column ``folder``, so that a `natural`
    partition can follow the sites that images came from.
    """

    name: str = Field(description="the folder")

    def read(self) -> Raw:
        """Return the images; see the class for where they lie.

        Raises:
            InputError: No such folder, or fewer than two classes in it.
        """
        root = self._root()
        train, test = self._train_and_test(root)
        classes = class_folders(train)
        if len(classes) < 2:
            raise self.wrong(
                f"there are {len(classes)} class folders in {train}",
                "put the images of each class into a subfolder of its own",
            )
        flaws = Flaws()
        numbers = {name: number for number, name in enumerate(classes)}
        parts: Parts = {"train": partial(images_in, [train, root], numbers)}
        for place in (train, test):
            loose = () if place is None else loose_images(place)
            flaws.add("images lie outside of the class folders", loose)
        if test is not None:
            strange = [name for name in class_folders(test) if name not in classes]
            flaws.add("test folders are of no class there is to learn", strange)
            parts["test"] = partial(images_in, [test], numbers)
        blocks = decode_parts(parts, self.geometry, flaws)
        return Raw(
            class_names=tuple(classes),
            train=blocks["train"],
            test=blocks.get("test"),
            flips=self.flips,
            flaws=flaws,
        )

    def files(self) -> Iterator[str]:
        """Return every image file."""
        return image_files(self._root().absolute())

    def _root(self) -> Path:
        root = Path(self.name).expanduser()
        if not root.is_dir():
            what = "is a file, not a folder" if root.exists() else "there is no such folder"
            raise self.wrong(what, "check the path")
        return root

    def _train_and_test(self, root: Path) -> tuple[Path, Path | None]:
        """Return the folders of the classes; without a ``train`` folder they are the root's own."""
        tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
        if (root / "train").is_dir():
            return root / "train", tests[0] if tests else None
        if tests:
            raise self.wrong(
                f"there is a folder {tests[0].name!r} but no 'train'",
                "put the classes to train on under 'train', or rename it if it is a class",
            )
        return root, None


def class_folders(folder: Path) -> list[str]:
    """Return the names of the classes in a folder, sorted."""
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(name for name in names if name != UNLABELED and not name.startswith("."))


def loose_images(folder: Path) -> Iterator[str]:
    """Yield the paths of the image files that lie in a folder itself, sorted."""
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != ".")
    return filter(_is_image, map(str, found))


def images_in(folders: Sequence[Path], numbers: Mapping[str, int]) -> Iterator[Encoded]:
    """Yield the images of every class in the first folder, and those without class in any of them.

    Args:
        folders: Where to look.
        numbers: Number of each class, by its folder's name.
    """
    labeled = [(folders[0] / name, number) for name, number in numbers.items()]
    unlabeled = [(folder / UNLABELED, UNKNOWN) for folder in dict.fromkeys(folders)]
    for home, label in labeled + unlabeled:
        for path in image_files(home):
            between = os.path.dirname(path)[len(str(home)) + 1 :]  # noqa: PTH120 - see _is_image
            yield Encoded(path, path, label, {"folder": between.replace(os.sep, "/") or "."})


def image_files(folder: Path) -> Iterator[str]:
    """Yield the paths of the image files at any depth; none if there is no such folder."""
    return filter(_is_image, files_under(str(folder)) if folder.is_dir() else ())


def _is_image(path: str) -> bool:
    """Say whether a file's name is an image's; that what it holds is none, its pixels show."""
    Image.init()  # all formats; other libraries load a few, and it remembers whether it was called
    return os.path.splitext(path)[1].lower() in Image.EXTENSION  # noqa: PTH122 - as fast as it gets
