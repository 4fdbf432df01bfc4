"""What every source is: a section that reads a data set once, into the cache, and cuts it for an experiment."""

import errno
import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from fedssl.core import rng
from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin
from fedssl.data.cache import Prepared, Raw, prepare, reading
from fedssl.data.images import Dataset, Images
from fedssl.data.shard import ImageSpec
from fedssl.data.stratified import draw_test_rows


class Source(Plugin):
    """A data source: `read` says how its files become arrays, `dataset` cuts these as the experiment says."""

    is_abstract: ClassVar[bool] = True

    train_size: int | None = Field(
        None, ge=1, description="training images to use, drawn by the seed; unset: all"
    )
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training images held out and evaluated on INSTEAD of the test images: "
        "for choosing settings without looking at the test set",
    )
    test_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share held out for test where the data has no test images of its own, by the seed",
    )

    cuts: ClassVar[frozenset[str]] = frozenset({"train_size", "validation", "test_share"})
    """Settings that do not change what is read."""

    places: ClassVar[frozenset[str]] = frozenset()
    """Settings that say where the data lies or how it gets there, and nothing of what it is."""

    @abstractmethod
    def read(self) -> Raw:
        """Read the data set from its files.

        Raises:
            InputError: The data is not there; the message says what to fetch and where to put it.
        """

    def files(self) -> Iterable[str]:
        """Return absolute paths of the files whose change means another data set; none for what is published once.

        Raises:
            InputError: They are not there.
        """
        return ()

    @property
    def skips_bad_images(self) -> bool:
        """Whether to go on without images that cannot be used."""
        return False

    def prepare(self, *, verify: bool = False) -> Prepared:
        """Return the data set's entry in the cache, written now if it is not there; see `fedssl.data.cache.prepare`."""
        with reading(self.kind):
            stamp = _stamp(self.files())
        settings = self.model_dump(mode="json", exclude=set(self.cuts))
        identity = {
            "settings": {
                name: _absolute(value, getattr(self, name)) for name, value in settings.items()
            },
            "files": stamp,
        }
        return prepare(self.kind, identity, self.read, skip=self.skips_bad_images, verify=verify)

    def dataset(self, seed: int) -> Dataset:
        """Return the data set, mapped, with the training images cut to `train_size` and `validation`.

        Raises:
            InputError: As `prepare`, or more images are asked for than there are.
        """
        data = self._whole(seed)
        train = data.train
        order = rng.numpy_generator(seed, "data/order").permutation(len(train))
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
        """Return all there is; the seed decides the split where the data has none of its own."""
        try:
            meta, train, test = self._mapped()
        except (
            FileNotFoundError
        ):  # another process found it damaged just now, and has prepared it anew
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
        """Hold out a share of every class for test; images that may not be labeled stay with the training images."""
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


def _stamp(files: Iterable[str]) -> str:
    """Return a digest of the paths, sizes and times of files; a link to nowhere, or to itself, is a file without size."""
    digest = hashlib.sha256()
    for path in files:
        try:
            stat = os.stat(path)  # noqa: PTH116 - there may be millions, and a Path each doubles the time
            line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            line = f"{path}\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def _absolute(value: Any, given: Any) -> Any:
    return str(given.absolute()) if isinstance(given, Path) else value


SOURCES = Family("data source", "fedssl.data.sources", Source, "data", default=None, key="source")
