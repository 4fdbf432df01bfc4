"""Reads a client's own images, in a folder or an npz file, so that they fit a federation; classes match by name."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import PrivateAttr

from fedssl.core.errors import InputError
from fedssl.data.blocks import Block
from fedssl.data.cache import Prepared, Raw
from fedssl.data.decode import Parts, decode_parts
from fedssl.data.flaws import Flaws
from fedssl.data.images import UNKNOWN, Rows
from fedssl.data.sources.folder import (
    Folder,
    class_folders,
    images_in,
    loose_images,
    note_unread_files,
)
from fedssl.data.sources.npz import Npz, names_as_text, note_unused_arrays, parts_of
from fedssl.data.sources.own_images import OwnImages
from fedssl.data.target import Encoded, Reading
from fedssl.data.terms import Terms

SKIP = "bad-images = 'skip' in the node config (fedssl deploy init and join: --bad-images skip)"
"""The setting that leaves flawed images out, for messages."""


def prepare_private(
    path: str,
    terms: Terms,
    reading: Reading,
    *,
    skip: bool,
    switch: str = SKIP,
    verify: bool = False,
) -> Prepared:
    """Return the cache entry of a client's images; it is written once, and again if a file changes.

    Labels are numbers of the federation's classes, -1 where an image has no label. The entry has a part ``"test"`` if
    the client has test images.

    Args:
        path: A folder, or a file whose name ends in ``.npz``.
        terms: Shape, classes and normalization of the federation's images.
        reading: How the federation's files become images of 8 bits.
        skip: Whether to leave out images that cannot be used; otherwise they are refused.
        switch: Setting that leaves them out, for messages.
        verify: Whether to compare the checksums of the entry too.

    Raises:
        InputError: There are no images, the images do not fit, or the federation does not have their classes.
    """
    is_file = path.lower().endswith(".npz")
    kind: type[_PrivateNpz | _PrivateFolder] = _PrivateNpz if is_file else _PrivateFolder
    try:
        source = kind.model_validate(_settings(kind, path, terms, reading, skip))
        source._switch = switch
        return source.prepare(verify=verify)
    except InputError as error:
        problem = error.problem.removeprefix("private:")
        field = "data-path" if error.field == "data.source" else error.field
        raise InputError(field, problem, error.remedy) from None


def _settings(
    kind: type[OwnImages], path: str, terms: Terms, reading: Reading, skip: bool
) -> dict[str, object]:
    """Return the settings of a source that fits images to the terms; they are a part of the cache entry's name."""
    channels, height, width = terms.spec.shape
    common = {
        "name": path,
        "flips": terms.spec.flips,
        "bad_images": "skip" if skip else "refuse",
        "class_names": terms.class_names,
        "mean": terms.spec.mean,
        "std": terms.spec.std,
    }
    if kind is _PrivateFolder:
        size = {"size": (height, width), "channels": channels}
        return {**common, **size, **vars(reading)}
    return {**common, "shape": terms.spec.shape}


class _PrivateFolder(Folder):
    """A folder as in the source `Folder`, but classes may be missing and images need no labels.

    Images outside of class folders are unlabeled. All images are scaled, cut and converted to the federation's size and
    channels, as `Folder` does.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    _switch: str = PrivateAttr(SKIP)

    def read(self) -> Raw:
        """Return the images.

        Raises:
            InputError: There is no such folder, or the federation has no class with the name of a class folder.
        """
        layout = self.find_layout()
        test, flaws = layout.test, Flaws(self._switch)
        flaws.remark(*layout.remarks())
        parts: Parts = {"train": partial(self._images, layout.homes, layout.root)}
        if test is not None:
            parts["test"] = partial(
                images_in, [test], self._number_folders(test, layout.root), layout.root
            )
        names = class_folders(layout.train, layout.root)
        self._check_no_split_in(layout.train, names, layout.root)
        # Refuse unknown classes before any image is decoded.
        self._number_folders(layout.train, layout.root)
        note_unread_files(layout, flaws, takes_loose=True)
        blocks = decode_parts(parts, self.geometry, flaws)
        return Raw(
            class_names=self.class_names,
            train=blocks["train"],
            test=blocks.get("test"),
            flips=self.flips,
            mean=self.mean,
            std=self.std,
            flaws=flaws,
            fixed_classes=True,
        )

    def _images(self, homes: Sequence[Path], root: Path) -> Iterator[Encoded]:
        yield from images_in(homes, self._number_folders(homes[0], root), root)
        for home in homes:
            yield from (Encoded(path, path, UNKNOWN) for path in loose_images(home))

    def _number_folders(self, folder: Path, root: Path) -> dict[str, int]:
        """Return the federation's class number of every class folder.

        Only the names of existing folders are used to look for images, never a name that the federation sent.
        """
        names = class_folders(folder, root)
        return dict(zip(names, _number_classes(self, names, "class folder"), strict=True))


class _PrivateNpz(Npz):
    """An npz file as in the source `Npz`, but labels may be missing, and class names, if it has any, match by name."""

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int]

    _switch: str = PrivateAttr(SKIP)

    def read(self) -> Raw:
        """Return the images.

        Raises:
            InputError: There is no such file, images have another shape, or the federation does not have a class.
        """
        flaws = Flaws(self._switch)
        arrays = self._arrays()
        parts = parts_of(arrays)
        flaws.remark(*parts.remarks())
        labels = f"{parts.train}labels"
        is_numbered = labels in arrays
        if labels not in arrays:
            images = arrays.get(f"{parts.train}images", ())
            arrays[labels] = np.full(len(images), UNKNOWN, dtype=np.int64)
        names = arrays.get("class_names")
        own = None if names is None else names_as_text(names)
        if own is None and is_numbered:
            told = ", ".join(f"{cls} is {name}" for cls, name in enumerate(self.class_names))
            flaws.remark(
                f"labels are the federation's numbers, for there is no class_names: {told}"
            )
        train = self._fit_to_terms(self._block(arrays, parts.train), own)
        test = None
        if parts.test is not None:
            test = self._fit_to_terms(self._block(arrays, parts.test), own)
        note_unused_arrays(arrays, parts, flaws)
        return Raw(
            class_names=self.class_names,
            train=[train],
            test=None if test is None else [test],
            flips=self.flips,
            mean=self.mean,
            std=self.std,
            flaws=flaws,
            fixed_classes=True,
        )

    def _fit_to_terms(self, block: Block, own: Sequence[str] | None) -> Block:
        """Return a block with the federation's classes and without columns; refuse images of another shape.

        Args:
            block: Images as the file has them.
            own: Class names of the file, if it has any.
        """
        if len(block.labels) and block.images.shape[1:] != self.shape:
            found, wanted = (" x ".join(map(str, s)) for s in (block.images.shape[1:], self.shape))
            raise self.source_error(
                f"images are {found}, but the federation's are {wanted} (channels, height, width)",
                "scale them, or give image files in a folder, which are scaled and converted",
            )
        return Block(block.images, self._federation_labels(block.labels, own))

    def _federation_labels(self, labels: Rows, own: Sequence[str] | None) -> Rows:
        most = int(labels.max(initial=UNKNOWN))
        known = len(self.class_names) if own is None else len(own)
        if most >= known:
            whose = "the federation has" if own is None else "class_names lists"
            raise self.source_error(
                f"labels run up to {most}, but {whose} {known} classes",
                "number the classes from 0; -1 is an image without label",
            )
        if own is None:
            return labels
        used = np.unique(labels[labels >= 0])
        numbers = np.full(len(own) + 1, UNKNOWN)  # the last element is for UNKNOWN = -1
        numbers[used] = _number_classes(self, [own[cls] for cls in used], "class")
        result: Rows = numbers[labels]
        return result


def _number_classes(
    source: "_PrivateFolder | _PrivateNpz", names: Iterable[str], what: str
) -> list[int]:
    """Return the federation's number of each class.

    Args:
        source: The source that reads the images; it knows the federation's classes.
        names: Names of the client's classes.
        what: Word for the names in the message.

    Raises:
        InputError: The federation has no class of some of these names; the message lists them.
    """
    known = {name: number for number, name in enumerate(source.class_names)}
    strange = [name for name in names if name not in known]
    if strange:
        raise source.source_error(
            f"{what} {', '.join(map(repr, strange))} is no class of the federation",
            f"it has: {', '.join(known)}; images without label belong in 'unlabeled'",
        )
    return [known[name] for name in names]
