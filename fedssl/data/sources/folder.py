"""A user's own folder of image files: ``source = "folder:PATH"``."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import Field

from fedssl.data.cache import Raw
from fedssl.data.decode import Encoded, Parts, decode_parts
from fedssl.data.flaws import MOST_NAMED, Flaws, plain_text
from fedssl.data.formats import NO_IMAGES, SYSTEM_FILES, is_image, may_be_image
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.own_images import (
    EncodedImages,
    entries_under,
    files_under,
    is_hidden,
    leads_back,
)
from fedssl.data.splits import UNDERSTOOD, by_role, look_alikes, role_of, says_unlabeled, twins


@dataclass(frozen=True)
class Layout:
    """Which subfolders of a folder are taken for what.

    Args:
        root: The folder.
        train: The folder of the classes to train on.
        test: That of the test images; None if there is none.
        unread: Folders of splits that are not read.
    """

    root: Path
    train: Path
    test: Path | None
    unread: tuple[Path, ...]

    @property
    def homes(self) -> list[Path]:
        """The folders in which training images may lie without a class: `train` and `root`."""
        return list(dict.fromkeys([self.train, self.root]))

    def remarks(self) -> list[str]:
        """Return what was taken for what, one sentence; nothing is said of a folder without splits."""
        if self.train == self.root:
            return []
        test = "a share of them, for there is no folder of test images"
        return [
            f"training images: {self.train.name}/, test images: "
            + (f"{self.test.name}/" if self.test else test)
            + "".join(f", not read: {folder.name}/" for folder in self.unread)
        ]


class Folder(EncodedImages):
    """One subfolder a class, and ``unlabeled`` for images without; or these under ``train`` and ``test``.

    Splits may be called as people call them, in any case: ``Training``, ``val``, ``dev`` (`fedssl.data.splits`). Of
    several folders for test only the first is read, and test comes before validation: data.validation holds training
    images out to choose settings by.

    Images may lie at any depth below their class; the folders between are the column ``folder``, so that a `natural`
    partition can follow the sites that images came from.
    """

    name: str = Field(description="the folder")

    def read(self) -> Raw:
        """Return the images; see the class for where they lie.

        Raises:
            InputError: No such folder, fewer than two classes in it, or folders that may be splits or classes.
        """
        layout = self.layout()
        train, test = layout.train, layout.test
        classes = class_folders(train, layout.root)
        if len(classes) < 2:
            taken = "" if train == layout.root else ", which is taken for the training images"
            raise self.wrong(
                f"there are {len(classes)} class folders in {train}{taken}",
                "put the images of each class into a subfolder of its own",
            )
        self._check_no_split_in(train, classes, layout.root)
        flaws = Flaws()
        flaws.remarks += layout.remarks()
        numbers = {name: number for number, name in enumerate(classes)}
        parts: Parts = {"train": partial(images_in, layout.homes, numbers, layout.root)}
        if test is not None:
            strange = [name for name in class_folders(test, layout.root) if name not in classes]
            flaws.add("test folders are of no class there is to learn", strange)
            parts["test"] = partial(images_in, [test], numbers, layout.root)
        account(layout, flaws)
        blocks = decode_parts(parts, self.geometry, flaws)
        return Raw(
            class_names=tuple(classes),
            train=blocks["train"],
            test=blocks.get("test"),
            flips=self.flips,
            flaws=flaws,
        )

    def files(self) -> Iterator[str]:
        """Yield every file, one that is no image too, and links: what is left out is part of what is prepared."""
        for entry in entries_under(str(self._root().absolute()), with_links=True):
            if not is_hidden(entry.name):
                yield entry.path

    def _root(self) -> Path:
        root = self.expanded(self.name)
        if not root.is_dir():
            what = "is a file, not a folder" if root.exists() else "there is no such folder"
            raise self.wrong(what, "check the path")
        return root

    def layout(self) -> Layout:
        """Return which subfolders are taken for what; without a folder for training the classes are the root's own.

        Raises:
            InputError: A folder may be a split or a class, or two folders are the same split.
        """
        root = self._root()
        folders = subfolders(root, root)
        found = by_role(folders)
        trains, tests = found["train"], found["test"] + found["validation"]
        same = twins(folders)
        if same:
            raise self.wrong(
                f"the folders {_named(same)} are the same split", "leave one of them, or rename it"
            )
        if not trains and not tests:
            self._check_no_hidden_splits(root, folders)
            return Layout(root, root, None, ())
        classes = [name for name in folders if role_of(name) is None and _holds_images(root / name)]
        splits = [*trains, *tests]
        if classes and trains:
            raise self.wrong(
                f"names of splits ({_named(splits)}) and other folders with images ({_named(classes)}) lie side by side",
                f"rename {_named(splits)} if that is a class; if not, move the other folders below the splits",
            )
        if not trains:
            raise self.wrong(
                f"there is a folder {tests[0]!r} but no 'train'",
                f"put the classes to train on under 'train', or rename {tests[0]!r} if it is a class",
            )
        if len(trains) > 1:
            raise self.wrong(
                f"the folders {_named(trains)} are both for training", "put them into one"
            )
        test = root / tests[0] if tests else None
        return Layout(root, root / trains[0], test, tuple(root / name for name in tests[1:]))

    def _check_no_hidden_splits(self, root: Path, folders: Sequence[str]) -> None:
        """Refuse folders that are splits by their looks, and splits that lie below the classes."""
        alike = look_alikes(folders)
        if alike:
            raise self.wrong(
                f"the folders {_named(alike)} look like splits, not classes",
                f"rename them: {UNDERSTOOD}",
            )
        for name in folders:
            inside = subfolders(root / name, root)
            inner = by_role(inside)
            below = [*inner["train"], *inner["test"], *inner["validation"]]
            if not inner["train"] or len(below) < 2:
                below = list(look_alikes(inside))
            if below:
                raise self.wrong(
                    f"the folder {name!r} holds {_named(below)}: splits below what would be a class",
                    "put the splits above: train/CLASS and test/CLASS",
                )

    def _check_no_split_in(self, train: Path, classes: Sequence[str], root: Path) -> None:
        """Refuse a class that is a split by its name and by what it holds, and images without labels below a class."""
        for name in classes:
            inside = subfolders(train / name, root)
            if role_of(name) is not None and set(inside) & set(classes):
                raise self.wrong(
                    f"the folder {name!r} in {train} holds the classes once more: it is a split, not a class",
                    f"put it beside {train.name!r}" if train != root else "put it elsewhere",
                )
            without = [inner for inner in inside if role_of(inner) == "unlabeled"]
            if without or says_unlabeled(name):
                which = f"{name}/{without[0]}" if without else name
                raise self.wrong(
                    f"the folder {which!r} in {train} says that its images have no labels, and would be a class's",
                    "put them into a folder 'unlabeled' beside the classes",
                )


def _named(names: Sequence[str]) -> str:
    """Return names in quotes, at most six."""
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")


def _holds_images(folder: Path) -> bool:
    """Say whether there are images, or files that may be, at any depth."""
    return any(is_image(path) or may_be_image(path) for path in files_under(str(folder)))


def subfolders(folder: Path, root: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; hidden ones, and links back into the data, are left out.

    Args:
        folder: Where to look.
        root: The whole data's folder.
    """
    top = os.path.realpath(root)
    names = (
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not leads_back(str(entry), top)
    )
    return sorted(name for name in names if not is_hidden(name))


def class_folders(folder: Path, root: Path) -> list[str]:
    """Return the names of the classes in a folder, sorted; arguments as in `subfolders`."""
    return [name for name in subfolders(folder, root) if role_of(name) != "unlabeled"]


def loose_images(folder: Path) -> Iterator[str]:
    """Yield the paths of the image files that lie in a folder itself, sorted."""
    found = (path for path in sorted(folder.iterdir()) if not path.is_dir())
    return (str(path) for path in found if is_image(path.name) and not is_hidden(path.name))


def images_in(folders: Sequence[Path], numbers: Mapping[str, int], root: Path) -> Iterator[Encoded]:
    """Yield the images of every class in the first folder, and those without class in any of them.

    Args:
        folders: Where to look.
        numbers: Number of each class, by its folder's name.
        root: The whole data's folder.
    """
    labeled = [(folders[0] / name, number) for name, number in numbers.items()]
    unlabeled = [
        (folder / name, UNKNOWN)
        for folder in folders
        for name in subfolders(folder, root)
        if role_of(name) == "unlabeled"
    ]
    for home, label in labeled + unlabeled:
        for path in image_files(home, root):
            between = os.path.dirname(path)[len(str(home)) + 1 :]  # noqa: PTH120 - millions of paths
            yield Encoded(path, path, label, {"folder": between.replace(os.sep, "/") or "."})


def image_files(folder: Path, root: Path) -> Iterator[str]:
    """Yield the paths of the image files at any depth of some data's folder; none if there is no such folder."""
    return filter(is_image, files_under(str(folder), str(root)) if folder.is_dir() else ())


def account(layout: Layout, flaws: Flaws, *, takes_loose: bool = False) -> None:
    """Note every file of a folder that is not read, with its reason; links that leave the folder are remarked on.

    Args:
        layout: Where images are read from.
        flaws: Filled.
        takes_loose: Whether images that lie in no class folder are read as well.
    """
    outer = {str(place) for place in (layout.train, layout.root, layout.test) if place is not None}
    untaken = outer - {str(home) for home in layout.homes if takes_loose}
    unread = tuple(f"{folder}{os.sep}" for folder in layout.unread)
    links = _LinksOut(layout.root)
    for entry in entries_under(str(layout.root), flaws=flaws):
        links.see(entry)
        path = entry.path
        if path.startswith(unread):
            flaws.leave_out("files lie in a folder of a split that is not read", [path])
        elif note_unless_image(entry, flaws) and os.path.dirname(path) in untaken:  # noqa: PTH120
            flaws.add("images lie outside of the class folders", [path])
    flaws.remarks += links.remarks()


def note_unless_image(entry: "os.DirEntry[str]", flaws: Flaws) -> bool:
    """Say whether a file's name is an image's; if it is not, note the file as left out, or as a flaw."""
    if is_hidden(entry.name):
        if entry.name.lower() not in SYSTEM_FILES and not entry.name.startswith("._"):
            flaws.leave_out("files or folders are hidden", [entry.path])
        return False
    if is_image(entry.path):
        return True
    reason = may_be_image(entry.path)
    if reason:
        flaws.add(reason, [entry.path])
    else:
        flaws.leave_out(NO_IMAGES, [entry.path])
    return False


class _LinksOut:
    """Finds the links among the files of a folder that lead to places outside of it.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._real = os.path.realpath(root)
        self._folder = ""
        self._found: list[str] = []

    def see(self, entry: "os.DirEntry[str]") -> None:
        """Look at a file, and at its folder if the file before lies in another."""
        folder = os.path.dirname(entry.path)  # noqa: PTH120
        if folder != self._folder:
            self._folder = folder
            self._is_out = self._leads_out(folder)
            if self._is_out:
                self._found.append(folder)
        if not self._is_out and entry.is_symlink() and self._leads_out(entry.path):
            self._found.append(entry.path)

    def _leads_out(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real != self._real and not real.startswith(self._real + os.sep)

    def remarks(self) -> list[str]:
        """Return one sentence about the links, if there are any."""
        if not self._found:
            return []
        first = ", ".join(map(plain_text, self._found[:MOST_NAMED]))
        more = ", ..." if len(self._found) > MOST_NAMED else ""
        return [f"links that lead out of the folder are followed: {first}{more}"]
