"""A client's own images, made to fit a federation: a folder of files or an npz file, its classes matched by name."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fedssl.core.errors import InputError
from fedssl.data.blocks import Block
from fedssl.data.cache import Prepared, Raw
from fedssl.data.decode import Encoded, Parts, decode_parts
from fedssl.data.flaws import Flaws
from fedssl.data.images import UNKNOWN, Rows
from fedssl.data.sources.folder import Folder, account, class_folders, images_in, loose_images
from fedssl.data.sources.npz import Npz, note_unused, texts
from fedssl.data.sources.own_images import OwnImages
from fedssl.data.terms import Terms

SKIP = "bad-images = 'skip' in the node config"


def prepare_private(path: str, terms: Terms, *, skip: bool) -> Prepared:
    """Return a client's images as the cache's entry: written once, again if a file changes.

    Its labels are the federation's classes, -1 where there is none. It has a part ``"test"`` if the client has one.

    Args:
        path: A folder, or a file that ends in ``.npz``.
        terms: What the images must become.
        skip: Go on without images that cannot be used; otherwise they are refused.

    Raises:
        InputError: There are no images, they do not fit, or their classes are not the federation's.
    """
    kind = _PrivateNpz if path.lower().endswith(".npz") else _PrivateFolder
    try:
        source = kind.model_validate(_settings(kind, path, terms, skip))
        return source.prepare()
    except InputError as error:
        problem = error.problem.removeprefix("private:")
        field = "data-path" if error.field == "data.source" else error.field
        raise InputError(field, problem, error.remedy) from None


def _settings(kind: type[OwnImages], path: str, terms: Terms, skip: bool) -> dict[str, object]:
    """Return the settings of a source that reads by these terms; they are part of the cache entry's name."""
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
        return {**common, "size": (height, width), "channels": channels}
    return {**common, "shape": terms.spec.shape}


class _PrivateFolder(Folder):
    """A folder as the source `Folder` knows it, but every class is optional, and so are labels.

    Images that lie in no class folder are unlabeled. All are scaled, cut and converted as `Folder` does where its size
    and channels are set.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def read(self) -> Raw:
        """Return the images.

        Raises:
            InputError: No such folder, or class folders that the federation has no class for.
        """
        layout = self.layout()
        test, flaws = layout.test, Flaws(SKIP)
        flaws.remarks += layout.remarks()
        parts: Parts = {"train": partial(self._images, layout.homes, layout.root)}
        if test is not None:
            parts["test"] = partial(
                images_in, [test], self._numbers(test, layout.root), layout.root
            )
        names = class_folders(layout.train, layout.root)
        self._check_no_split_in(layout.train, names, layout.root)
        # An unknown class is refused before anything is decoded.
        self._numbers(layout.train, layout.root)
        account(layout, flaws, takes_loose=True)
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
        yield from images_in(homes, self._numbers(homes[0], root), root)
        for home in homes:
            yield from (Encoded(path, path, UNKNOWN) for path in loose_images(home))

    def _numbers(self, folder: Path, root: Path) -> dict[str, int]:
        """Return the federation's number of every class folder: of those there are, never of a name that was sent."""
        names = class_folders(folder, root)
        return dict(zip(names, _numbers(self, names, "class folder"), strict=True))


class _PrivateNpz(Npz):
    """An npz file as the source `Npz` knows it; labels may be missing, and are matched by name where it has names."""

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int]

    def read(self) -> Raw:
        """Return the images.

        Raises:
            InputError: No such file, images of another shape, or labels that are no class of the federation.
        """
        flaws = Flaws(SKIP)
        arrays = self._arrays(flaws)
        if "labels" not in arrays:
            arrays["labels"] = np.full(len(arrays.get("images", ())), UNKNOWN, dtype=np.int64)
        names = arrays.get("class_names")
        own = None if names is None else texts(names)
        train = self._fitting(self._block(arrays, ""), own)
        has_test = "test_images" in arrays
        test = self._fitting(self._block(arrays, "test_"), own) if has_test else None
        note_unused(arrays, flaws)
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

    def _fitting(self, block: Block, own: Sequence[str] | None) -> Block:
        """Return a block in the federation's shape and classes, without columns."""
        if len(block.labels) and block.images.shape[1:] != self.shape:
            found, wanted = (" x ".join(map(str, s)) for s in (block.images.shape[1:], self.shape))
            raise self.wrong(
                f"images are {found}, but the federation's are {wanted} (channels, height, width)",
                "scale them, or give image files in a folder, which are scaled and converted",
            )
        return Block(block.images, self._classes(block.labels, own))

    def _classes(self, labels: Rows, own: Sequence[str] | None) -> Rows:
        most = int(labels.max(initial=UNKNOWN))
        known = len(self.class_names) if own is None else len(own)
        if most >= known:
            whose = "the federation has" if own is None else "class_names lists"
            raise self.wrong(
                f"labels run up to {most}, but {whose} {known} classes",
                "number the classes from 0; -1 is an image without label",
            )
        if own is None:
            return labels
        used = np.unique(labels[labels >= 0])
        numbers = np.full(len(own) + 1, UNKNOWN)  # the last is UNKNOWN's own
        numbers[used] = _numbers(self, [own[cls] for cls in used], "class")
        result: Rows = numbers[labels]
        return result


def _numbers(source: "_PrivateFolder | _PrivateNpz", names: Iterable[str], what: str) -> list[int]:
    """Return the federation's number of each class.

    Raises:
        InputError: The federation has no such class; names all of them.
    """
    known = {name: number for number, name in enumerate(source.class_names)}
    strange = [name for name in names if name not in known]
    if strange:
        raise source.wrong(
            f"{what} {', '.join(map(repr, strange))} is no class of the federation",
            f"it has: {', '.join(known)}; images without label belong in 'unlabeled'",
        )
    return [known[name] for name in names]
