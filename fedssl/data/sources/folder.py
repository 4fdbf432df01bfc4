"""A source that reads a user's own folder of image files: ``source = "folder:PATH"``."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from fedssl.core.known_names import is_folder
from fedssl.data.cache import Raw
from fedssl.data.decode import Parts, decode_parts
from fedssl.data.flaws import MOST_NAMED, NO_TRAINING_IMAGES, Flaws, plain_text
from fedssl.data.formats import NO_IMAGES, READ, SYSTEM_FILES, is_image, may_be_image
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.own_images import (
    EncodedImages,
    entries_under,
    files_under,
    is_hidden,
    leads_back,
)
from fedssl.data.splits import (
    UNDERSTOOD,
    find_look_alikes,
    find_twins,
    group_by_role,
    role_of,
    says_unlabeled,
)
from fedssl.data.target import Encoded


@dataclass(frozen=True)
class Layout:
    """The roles of the subfolders of a data folder.

    Args:
        root: The data folder.
        train: The folder that contains the class folders of training images; `root` if there are no splits.
        test: The folder of test images; None if there is none.
        unread: The folders of splits that are not read.
    """

    root: Path
    train: Path
    test: Path | None
    unread: tuple[Path, ...]

    @property
    def homes(self) -> list[Path]:
        """The folders in which training images without a class may lie: `train` and `root`."""
        return list(dict.fromkeys([self.train, self.root]))

    def remarks(self) -> list[str]:
        """Return one sentence that says which folders are read as which split; none if there are no splits."""
        if self.train == self.root:
            return []
        test = "a share of them, for there is no folder of test images"
        return [
            f"training images: {self.train.name}/, test images: "
            + (f"{self.test.name}/" if self.test else test)
            + "".join(f", not read: {folder.name}/" for folder in self.unread)
        ]


class Folder(EncodedImages):
    """A folder with a subfolder for each class, and ``unlabeled`` for images without label; it may have splits.

    With splits, these subfolders lie below ``train`` and ``test``. Splits may have other usual names, in any case, such
    as ``Training``, ``val`` or ``dev`` (`fedssl.data.splits`). Of several folders for test, only one is read; a folder
    named test comes before one named validation. To choose settings without test images, data.validation holds training
    images out.

    Images may lie at any depth below their class. The folders between class and image are the column ``folder``, so
    that a `natural` partition can follow the sites that images come from.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"name"})
    knows_name: ClassVar[Callable[[str], bool]] = is_folder

    name: str = Field(description="path of the folder")

    def read(self) -> Raw:
        """Return the images; the class's docstring says where they lie.

        Raises:
            InputError: There is no such folder, it has fewer than two classes, or folders may be splits or classes.
        """
        layout = self.find_layout()
        train, test = layout.train, layout.test
        classes = class_folders(train, layout.root)
        if len(classes) < 2:
            taken = "" if train == layout.root else ", which is taken for the training images"
            raise self.source_error(
                f"there are {len(classes)} class folders in {train}{taken}",
                "put the images of each class into a subfolder of its own",
            )
        self._check_no_split_in(train, classes, layout.root)
        flaws = Flaws()
        flaws.remark(*layout.remarks())
        numbers = {name: number for number, name in enumerate(classes)}
        parts: Parts = {"train": partial(images_in, layout.homes, numbers, layout.root)}
        if test is not None:
            strange = [name for name in class_folders(test, layout.root) if name not in classes]
            flaws.add("test folders are of no class there is to learn", strange)
            parts["test"] = partial(images_in, [test], numbers, layout.root)
        note_unread_files(layout, flaws)
        flaws.advise(NO_TRAINING_IMAGES, READ)
        blocks = decode_parts(parts, self.geometry, flaws)
        return Raw(
            class_names=tuple(classes),
            train=blocks["train"],
            test=blocks.get("test"),
            flips=self.flips,
            flaws=flaws,
        )

    def files(self) -> Iterator[str]:
        """Yield all files and links, even files that are no images: notes about left-out files depend on them too."""
        for entry in entries_under(str(self._root().absolute()), with_links=True):
            if not is_hidden(entry.name):
                yield entry.path

    def _root(self) -> Path:
        root = self.expand_home(self.name)
        if not root.is_dir():
            if root.exists():
                raise self.source_error("is a file, not a folder", "check the path")
            raise self.not_found_error("folder", self.name)
        return root

    def find_layout(self) -> Layout:
        """Return the roles of the subfolders; without folders of splits, the root contains the class folders.

        Raises:
            InputError: A folder may be a split or a class, or two folders are the same split.
        """
        root = self._root()
        folders = subfolders(root, root)
        found = group_by_role(folders)
        trains, tests = found["train"], found["test"] + found["validation"]
        same = find_twins(folders)
        if same:
            raise self.source_error(
                f"the folders {_quote(same)} are the same split",
                "keep one of them, or rename the others",
            )
        if not trains and not tests:
            self._check_no_hidden_splits(root, folders)
            return Layout(root, root, None, ())
        classes = [name for name in folders if role_of(name) is None and _holds_images(root / name)]
        splits = [*trains, *tests]
        if classes and trains:
            raise self.source_error(
                f"names of splits ({_quote(splits)}) and other folders with images ({_quote(classes)}) "
                "lie side by side",
                f"rename {_quote(splits)} if that is a class; if not, move the other folders below the splits",
            )
        if not trains:
            raise self.source_error(
                f"there is a folder {tests[0]!r} but no 'train'",
                f"put the classes to train on under 'train', or rename {tests[0]!r} if it is a class",
            )
        if len(trains) > 1:
            raise self.source_error(
                f"the folders {_quote(trains)} are both for training", "put them into one"
            )
        test = root / tests[0] if tests else None
        return Layout(root, root / trains[0], test, tuple(root / name for name in tests[1:]))

    def _check_no_hidden_splits(self, root: Path, folders: Sequence[str]) -> None:
        """Refuse folders whose names look like splits, and splits that lie below class folders."""
        alike = find_look_alikes(folders)
        if alike:
            raise self.source_error(
                f"the folders {_quote(alike)} look like splits, not classes",
                f"rename them: {UNDERSTOOD}",
            )
        for name in folders:
            inside = subfolders(root / name, root)
            inner = group_by_role(inside)
            below = [*inner["train"], *inner["test"], *inner["validation"]]
            if not inner["train"] or len(below) < 2:
                below = list(find_look_alikes(inside))
            if below:
                raise self.source_error(
                    f"the folder {name!r} holds {_quote(below)}: splits below what would be a class",
                    "put the splits above: train/CLASS and test/CLASS",
                )

    def _check_no_split_in(self, train: Path, classes: Sequence[str], root: Path) -> None:
        """Refuse a class folder that has the name and content of a split, or that contains unlabeled images."""
        for name in classes:
            inside = subfolders(train / name, root)
            if role_of(name) is not None and set(inside) & set(classes):
                raise self.source_error(
                    f"the folder {name!r} in {train} holds the classes once more: it is a split, not a class",
                    f"put it beside {train.name!r}" if train != root else "put it elsewhere",
                )
            without = [inner for inner in inside if role_of(inner) == "unlabeled"]
            if without or says_unlabeled(name):
                which = f"{name}/{without[0]}" if without else name
                raise self.source_error(
                    f"the folder {which!r} in {train} says that its images have no labels, "
                    "but it is in the place of a class",
                    "put them into a folder 'unlabeled' beside the classes",
                )


def _quote(names: Sequence[str]) -> str:
    """Return at most six names in quotes, as one text."""
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")


def _holds_images(folder: Path) -> bool:
    """Say whether a folder has images, or files that may be images, at any depth."""
    return any(is_image(path) or may_be_image(path) for path in files_under(str(folder)))


def subfolders(folder: Path, root: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden folders and links back into the data.

    Args:
        folder: The folder to look into.
        root: The folder of the whole data.
    """
    top = os.path.realpath(root)
    names = (
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not leads_back(str(entry), top)
    )
    return sorted(name for name in names if not is_hidden(name))


def class_folders(folder: Path, root: Path) -> list[str]:
    """Return the sorted names of the class folders in a folder; arguments as in `subfolders`."""
    return [name for name in subfolders(folder, root) if role_of(name) != "unlabeled"]


def loose_images(folder: Path) -> Iterator[str]:
    """Yield the sorted paths of the image files that lie directly in a folder."""
    found = (path for path in sorted(folder.iterdir()) if not path.is_dir())
    return (str(path) for path in found if is_image(path.name) and not is_hidden(path.name))


def images_in(folders: Sequence[Path], numbers: Mapping[str, int], root: Path) -> Iterator[Encoded]:
    """Yield the images of every class in the first folder, and the unlabeled images in all folders.

    Args:
        folders: The folders to look into; the first one contains the class folders.
        numbers: Number of each class, by its folder's name.
        root: The folder of the whole data.
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
            between = os.path.dirname(path)[len(str(home)) + 1 :]  # noqa: PTH120 - there may be millions of paths
            yield Encoded(path, path, label, {"folder": between.replace(os.sep, "/") or "."})


def image_files(folder: Path, root: Path) -> Iterator[str]:
    """Yield the paths of the image files at any depth of a folder; none if the folder does not exist."""
    return filter(is_image, files_under(str(folder), str(root)) if folder.is_dir() else ())


def note_unread_files(layout: Layout, flaws: Flaws, *, takes_loose: bool = False) -> None:
    """Note every file of a folder that is not read, with its reason, and remark on links that lead out of the folder.

    Args:
        layout: The folders that images are read from.
        flaws: Filled with the files that are not read.
        takes_loose: Whether images outside of class folders are read too.
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
    flaws.remark(*links.remarks())


def note_unless_image(entry: "os.DirEntry[str]", flaws: Flaws) -> bool:
    """Say whether a file has the name of an image; if not, note it as a flaw or as left out."""
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
    """Finds the links in a folder that lead out of the folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._real = os.path.realpath(root)
        self._folder = ""
        self._found: list[str] = []

    def see(self, entry: "os.DirEntry[str]") -> None:
        """Check whether a file is a link that leads out, and also its folder if the last file lay in another one."""
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
        """Return one sentence about the links; an empty list if there are none."""
        if not self._found:
            return []
        first = ", ".join(map(plain_text, self._found[:MOST_NAMED]))
        more = ", ..." if len(self._found) > MOST_NAMED else ""
        return [f"links that lead out of the folder are followed: {first}{more}"]
