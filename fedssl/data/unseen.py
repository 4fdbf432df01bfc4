"""Reads images that a run has not seen, from image files, folders and npz files, in the shape that the run takes.

They are decoded like the images of ``folder:`` and ``npz:`` sources, a block at a time, so that any number fits memory.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fedssl.core.errors import InputError
from fedssl.core.text import one_line
from fedssl.data.blocks import Block
from fedssl.data.decode import decode
from fedssl.data.flaws import Flaws
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.folder import note_unless_image
from fedssl.data.sources.npz import Npz
from fedssl.data.sources.own_images import entries_under
from fedssl.data.target import Encoded, Target

FIELD = "IMAGES"
"""Error messages name this as the field that is wrong."""


def read_blocks(
    paths: Iterable[Path], class_names: tuple[str, ...], target: Target, flaws: Flaws
) -> Iterator[Block]:
    """Yield all images in order with their names, and with their label where a folder or an npz file says it.

    Args:
        paths: Image files, folders with images at any depth, and ``.npz`` files.
        class_names: Class names of the run. An image in a folder has the class of the first folder on its way down
            that has the name of a class; if there is none, that of the folder in `paths` if it has the name of a class.
        target: Shape that every image gets.
        flaws: Filled with the images that cannot be read or do not fit the target, and with the files left out.

    Raises:
        InputError: A path does not exist, a folder has no images, or an npz file has the wrong arrays.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    for path in paths:
        if path.suffix.lower() == ".npz" and path.is_file():
            yield _npz_block(path, numbers, target, flaws)
        else:
            yield from decode(_encoded(path, numbers, flaws), target, flaws)


def _encoded(path: Path, numbers: Mapping[str, int], flaws: Flaws) -> Iterator[Encoded]:
    """Yield a file, or the image files of a folder with the class that a folder on the way says.

    Args:
        path: The file or folder.
        numbers: Number of each class, by its name.
        flaws: Filled with the files of the folder that are no images.
    """
    try:
        is_file = not path.is_dir() and path.exists()
    except OSError as error:  # such as a name that is too long
        raise InputError(FIELD, f"{str(path)[:200]}: {error.strerror}", "check the path") from None
    if is_file:
        yield Encoded(str(path), str(path), UNKNOWN)
        return
    if not path.is_dir():
        raise InputError(
            FIELD, f"there is no file or folder {str(path)!r}", "name files, folders or an .npz"
        )
    found, own = False, _class_of((path.resolve().name,), numbers)
    try:
        for entry in entries_under(str(path), flaws=flaws):
            if note_unless_image(entry, flaws):
                found = True
                below = Path(entry.path).relative_to(path).parts[:-1]
                label = _class_of(below, numbers)
                yield Encoded(entry.path, entry.path, own if label == UNKNOWN else label)
    except OSError as error:
        raise InputError(
            FIELD, f"{path} cannot be read: {error}", "check who may read it"
        ) from None
    if not found:
        left_out = "; ".join(("", *flaws.notes()))
        raise InputError(FIELD, f"there are no images in {path}{left_out}", "check the path")


def _class_of(folders: Iterable[str], numbers: Mapping[str, int]) -> int:
    """Return the number of the first folder that has the name of a class; -1 if none has."""
    # A run's record holds the names of classes on one line, so folder names are changed in the same way.
    names = map(one_line, folders)
    return next((numbers[name] for name in names if name in numbers), UNKNOWN)


def _npz_block(path: Path, numbers: Mapping[str, int], target: Target, flaws: Flaws) -> Block:
    """Return the images of an npz file; if it has class names, labels are matched to the run's classes by name."""
    try:
        block, names = Npz(name=str(path)).read_images(flaws)
    except InputError as error:
        raise InputError(FIELD, error.problem, error.remedy) from None
    shape = (target.channels, *target.size)
    if block.images.shape[1:] != shape:
        height, width = block.images.shape[2:]
        problem = f"{path}: images are {height}x{width} with {block.images.shape[1]} channels, not {shape}"
        raise InputError(FIELD, problem, "scale the images first: arrays are not scaled here")
    number_of = np.array([*(numbers.get(name, UNKNOWN) for name in names), UNKNOWN])
    labels = number_of[np.clip(block.labels, UNKNOWN, len(names))]
    rows = [f"{path}[{row}]" for row in range(len(labels))]
    return dataclasses.replace(block, labels=labels, names=rows)
