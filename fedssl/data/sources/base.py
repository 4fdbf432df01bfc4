"""The base class of sources: a source reads a data set into the cache once, and cuts it for an experiment."""

import errno
import functools
import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field

from fedssl.core import rng
from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin
from fedssl.data.cache import Prepared, Raw, blame_source, prepare
from fedssl.data.images import Dataset, Images
from fedssl.data.shard import ImageSpec
from fedssl.data.stratified import draw_test_rows


class Source(Plugin):
    """A section that names a data set: `read` turns its files into arrays, and `dataset` cuts them for an experiment.

    Example:
        A member defines `read`; `dataset` does the rest, and keeps the arrays in the cache. This source has no files.

        >>> from fedssl.data.blocks import Block
        >>> class BlackAndWhite(Source):
        ...     def read(self):
        ...         images = np.array([0, 255] * 10, dtype=np.uint8).reshape(20, 1, 1, 1)
        ...         block = Block(images, labels=np.array([0, 1] * 10))
        ...         return Raw(class_names=("black", "white"), train=[block], test=None, flips=True)
        >>> [block.images.shape for block in BlackAndWhite().read().train]
        [(20, 1, 1, 1)]
    """

    is_abstract: ClassVar[bool] = True

    train_size: int | None = Field(
        None, ge=1, description="number of training images to use, drawn by the seed; unset: all"
    )
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training images that the model is evaluated on INSTEAD of the test images, "
        "so that settings can be chosen without looking at the test set; nobody trains on them",
    )
    test_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of the images that is held out for test, drawn by the seed, if the data has no test images",
    )

    cuts: ClassVar[frozenset[str]] = frozenset({"train_size", "validation", "test_share"})
    """Names of settings that do not change the result of `read`; the cache ignores them."""

    places: ClassVar[frozenset[str]] = frozenset()
    """Names of settings that say where the data lies or how it gets there, but not what the data is."""

    paths: ClassVar[frozenset[str]] = frozenset()
    """Names of settings that hold the path of a file or folder as text; a setting of the type `Path` needs no name here."""

    @functools.cached_property
    def searched(self) -> tuple[Path, ...]:
        """The absolute folders below which relative paths were searched; empty: the current folder alone."""
        return ()

    @abstractmethod
    def read(self) -> Raw:
        """Read the data set from its files.

        Raises:
            InputError: The data is missing; the message says what to fetch and where to put it.
        """

    def files(self) -> Iterable[str]:
        """Return absolute paths of the files that the data depends on: the cache reads the data again if they change.

        Data that is published once and never changes has no such files.

        Raises:
            InputError: The files are missing.
        """
        return ()

    @property
    def skips_bad_images(self) -> bool:
        """Whether to leave out images that cannot be used; otherwise they are refused."""
        return False

    def prepare(self, *, verify: bool = False) -> Prepared:
        """Return the cache entry of the data set; write it if it is missing or damaged.

        Args:
            verify: Whether to compare checksums too.

        Raises:
            InputError: As in `fedssl.data.cache.prepare`.
        """
        with blame_source(self.kind):
            stamp = _digest_of_files(self.files())
        # One folder is one entry, from whatever current folder it is named.
        located = self._with_absolute_names()
        settings = located.model_dump(mode="json", exclude=set(self.cuts))
        identity = {
            "kind": located.kind,
            "settings": {
                name: _with_absolute_path(value, getattr(self, name))
                for name, value in settings.items()
            },
            "files": stamp,
        }
        return prepare(self.kind, identity, self.read, skip=self.skips_bad_images, verify=verify)

    def _with_absolute_names(self) -> Self:
        """Return this source with an absolute path in each of its `paths` that is there."""
        there = {
            name: str(Path(path).absolute())
            for name in self.paths
            if not (path := getattr(self, name)).startswith("~") and Path(path).exists()
        }
        return self.model_copy(update=there) if there else self

    def dataset(self, seed: int) -> Dataset:
        """Return the memory-mapped data set, with `train_size` and `validation` applied to its training images.

        Args:
            seed: The experiment's seed; it draws the images for training, validation and test.

        Raises:
            InputError: As in `prepare`, or the settings ask for more images than there are.
        """
        data = self._whole(seed)
        train = data.train
        order = rng.make_numpy_generator(seed, "data/order").permutation(len(train))
        labelable = order[train.labelable[order]]
        num_held_out = round(self.validation * len(labelable))
        if self.validation and num_held_out == 0:
            problem = f"is {self.validation:g}, which is none of {len(labelable)} images"
            raise InputError(
                "data.validation", problem, "raise it, or leave it out to use test images"
            )
        held_out = labelable[:num_held_out]
        rest = order[~np.isin(order, held_out)] if num_held_out else order
        if self.train_size is not None and self.train_size > len(rest):
            raise InputError("data.train_size", f"is {self.train_size}, but there are {len(rest)}")
        kept = np.sort(rest[: self.train_size])
        if num_held_out:
            data = replace(data, held_out=train.take(np.sort(held_out)), held_out_name="validation")
        return data if len(kept) == len(order) else replace(data, train=train.take(kept))

    def _whole(self, seed: int) -> Dataset:
        """Return the whole data set; the seed draws the test images if the data has none of its own."""
        try:
            meta, train, test = self._mapped()
        except FileNotFoundError:
            # Another process has just found the entry damaged and written it anew.
            meta, train, test = self._mapped()
        if test is None:
            train, test = self._split(train, meta["class_names"], seed)
        return Dataset(
            train=train,
            held_out=test,
            held_out_name="test",
            spec=ImageSpec(
                tuple(meta["shape"]),
                len(meta["class_names"]),
                mean=tuple(meta["mean"]),
                std=tuple(meta["std"]),
                flips=meta["flips"],
            ),
            class_names=tuple(meta["class_names"]),
            column_values={name: tuple(v) for name, v in meta["column_values"].items()},
            notes=tuple(meta["notes"]),
            remarks=tuple(meta["remarks"]),
        )

    def _mapped(self) -> tuple[Mapping[str, Any], Images, Images | None]:
        prepared = self.prepare()
        train = prepared.part("train")
        assert train is not None
        return prepared.meta, train, prepared.part("test")

    def _split(self, images: Images, class_names: list[str], seed: int) -> tuple[Images, Images]:
        """Hold out a share of every class for test; images that may not be labeled all stay training images."""
        rows = np.flatnonzero(images.labelable)
        try:
            seed_of_split = rng.derive_seed(seed, "data/split") % 2**32
            test = rows[draw_test_rows(images.labels[rows], self.test_share, seed_of_split)]
        except ValueError:
            counts = np.bincount(images.labels[rows], minlength=len(class_names))
            least = int(counts.argmin())
            problem = (
                f"is {self.test_share:g}, which cannot be held out of every class: "
                f"{class_names[least]!r} has {counts[least]} images"
            )
            raise InputError(
                "data.test_share", problem, "raise it, or give the data test images of its own"
            ) from None
        held = np.zeros(len(images), dtype=np.bool_)
        held[test] = True
        return images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))


def _digest_of_files(files: Iterable[str]) -> str:
    """Return a digest of the paths, sizes and times of files; a link to nowhere or itself counts by its path alone."""
    digest = hashlib.sha256()
    for path in files:
        try:
            stat = os.stat(path)  # noqa: PTH116 - there may be millions of files, and a Path for each doubles the time
            line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            line = f"{path}\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def _with_absolute_path(value: Any, given: Any) -> Any:
    return str(given.absolute()) if isinstance(given, Path) else value


SOURCES = Family("data source", "fedssl.data.sources", Source, "data", default=None, key="source")
