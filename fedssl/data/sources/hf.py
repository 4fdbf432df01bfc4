"""Any image data set of the Hugging Face Hub, or a folder in its layout: ``source = "hf:NAME-OR-PATH"``.

Needs the ``datasets`` library: ``pip install 'fedssl[hf]'``. A local folder is read without the network.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from fedssl.data.cache import Raw
from fedssl.data.decode import Encoded, Parts, decode_parts
from fedssl.data.flaws import Flaws
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.own_images import EncodedImages, files_under
from fedssl.errors import InputError, nearest

ROWS_AT_ONCE = 256

TEST_SPLITS = ("test", "validation", "valid", "val")

IMAGE_KINDS = ("Image", "binary", "string")
"""What a column of images may hold: images, their bytes, or paths of files."""

LABEL_KINDS = ("ClassLabel", "string", "large_string", "bool", "int", "uint")
"""What a column of classes may hold; integers of any width."""

SAVED = ("dataset_dict.json", "state.json")
"""Files by which ``save_to_disk`` marks a folder: of several splits, and of one."""


class Hf(EncodedImages):
    """A data set with a column of images and one of classes; other columns of text or numbers are kept as columns.

    A local folder is either in the Hub's layout (parquet files, images, ...) or what ``save_to_disk`` wrote. The library
    knows a split of another name than train, validation and test by files such as
    ``data/unlabeled-00000-of-00001.parquet``.
    """

    name: str = Field(description="name on the Hub, or a local folder")
    config: str | None = Field(None, description="configuration, where the data set has several")
    revision: str | None = Field(None, description="version on the Hub: a branch, tag or commit")
    image_column: str | None = Field(None, description="unset: the only column of images")
    label_column: str | None = Field(None, description="unset: the only column of classes")

    def read(self) -> Raw:
        """Return the images of the splits ``train`` and ``test`` (or ``validation``), and of ``unlabeled`` if there is one.

        Raises:
            InputError: The library or the data set is not there, or its columns are not clear.
        """
        splits = self._load()
        if "train" not in splits:
            raise self.wrong("has no split 'train'", f"it has {sorted(splits)}")
        train = splits["train"]
        image = self._column(train, self.image_column, "image_column", ("Image",), IMAGE_KINDS)
        label = self._column(train, self.label_column, "label_column", ("ClassLabel",), LABEL_KINDS)
        names, number = _classes(train, label)
        chosen = {"train": [name for name in ("train", "unlabeled") if name in splits]}
        test = next((name for name in TEST_SPLITS if name in splits), None)
        if test is not None:
            chosen["test"] = [test]
        for name in (name for several in chosen.values() for name in several):
            if image not in splits[name].features:
                raise self.wrong(f"split {name!r} has no column {image!r}, which 'train' has")
        parts: Parts = {
            part: partial(_items, splits, several, image, label, number)
            for part, several in chosen.items()
        }
        flaws = Flaws()
        blocks = decode_parts(parts, self.geometry, flaws)
        return Raw(
            class_names=names,
            train=blocks["train"],
            test=blocks.get("test"),
            flips=self.flips,
            flaws=flaws,
        )

    def files(self) -> Iterator[str]:
        """Yield the files of a local folder; a name on the Hub has none."""
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            yield from files_under(str(folder.absolute()))

    def _load(self) -> Any:
        """Return the data set's splits by name."""
        try:
            import datasets
        except ImportError:
            raise self.wrong(
                "needs the 'datasets' library, which is not installed", "pip install 'fedssl[hf]'"
            ) from None
        folder = Path(self.name).expanduser()
        if not folder.is_dir() and (
            self.name.startswith((".", "/", "~")) or self.name.count("/") > 1
        ):
            raise self.wrong("there is no such folder", "check the path")
        shown = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            if any((folder / mark).is_file() for mark in SAVED):
                saved = datasets.load_from_disk(str(folder))
                return saved if isinstance(saved, dict) else {"train": saved}
            if not folder.is_dir():
                return datasets.load_dataset(self.name, self.config, revision=self.revision)
            return _read_folder(folder, self.config)
        except Exception as error:  # the Hub's many ways to say no
            said = " ".join(str(error).split()) or "no reason given"
            raise self.wrong(
                f"cannot be loaded: {type(error).__name__}: {said[:300]}",
                "give a folder with its parquet or image files, or a name that the Hub has and this machine can reach",
            ) from None
        finally:
            if shown:
                datasets.enable_progress_bars()

    def _column(
        self,
        split: Any,
        named: str | None,
        setting: str,
        wanted: Sequence[str],
        possible: Sequence[str],
    ) -> str:
        """Return the column that a setting names, or the only one of the kind that is wanted.

        Args:
            split: The training images.
            named: The setting's value.
            setting: Its name.
            wanted: Kinds of columns to take unasked.
            possible: Kinds of columns that may be named.
        """
        field, columns = f"data.{setting}", split.features
        if named is not None and named not in columns:
            raise InputError(field, f"there is no column {named!r}", nearest(named, columns))
        found = [named] if named else [name for name in columns if _kind(columns[name]) in wanted]
        if not found and "ClassLabel" in wanted:
            found = [name for name in ("label", "labels", "class") if name in columns]
        if len(found) != 1:
            problem = f"{self.kind} has {len(found)} columns that could be it"
            raise InputError(field, problem, f"set it to one of: {', '.join(columns)}")
        if _kind(columns[found[0]]) not in possible:
            problem = f"column {found[0]!r} of {self.kind} holds {_kind(columns[found[0]])}"
            raise InputError(field, problem, f"it must hold one of: {', '.join(possible)}")
        return found[0]


def _kind(feature: Any) -> str:
    """Return what a column holds: a plain value's type without its width, else the kind of feature."""
    dtype = feature.dtype if type(feature).__name__ == "Value" else type(feature).__name__
    return str(dtype).rstrip("0123456789")


def _classes(train: Any, label: str) -> tuple[tuple[str, ...], Callable[[Any], int]]:
    """Return the classes' names, and what turns a value of the column into a class: -1 if it is none of them."""
    names = getattr(train.features[label], "names", None)
    if names:
        return tuple(names), int
    values = sorted(set(train.unique(label)) - {None, UNKNOWN})
    numbers = {value: number for number, value in enumerate(values)}
    return tuple(str(value) for value in values), lambda value: numbers.get(value, UNKNOWN)


def _read_folder(folder: Path, config: str | None) -> Any:
    """Return the splits of a local folder.

    The library makes a copy, which is gone with them: in its own cache it could be taken for the Hub's data of that name.
    """
    import datasets

    copy = tempfile.mkdtemp(prefix="fedssl-")
    try:
        splits = datasets.load_dataset(str(folder), config, cache_dir=copy)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    weakref.finalize(splits, shutil.rmtree, copy, ignore_errors=True)
    return splits


def _items(
    splits: dict[str, Any],
    names: Sequence[str],
    image: str,
    label: str,
    number: Callable[[Any], int],
) -> Iterator[Encoded]:
    """Yield the images of some splits, still encoded."""
    import datasets

    for name in names:
        plain = splits[name].cast_column(image, datasets.Image(decode=False))
        others = [
            column
            for column, feature in plain.features.items()
            if column not in (image, label)
            and isinstance(feature, datasets.Value)
            and _kind(feature) not in ("binary", "large_binary")
        ]
        for start in range(0, len(plain), ROWS_AT_ONCE):
            rows = plain[start : start + ROWS_AT_ONCE]
            labels = rows.get(label, [None] * len(rows[image]))
            for i, (found, given) in enumerate(zip(rows[image], labels, strict=True)):
                columns = {column: rows[column][i] for column in others}
                cls = UNKNOWN if given is None else number(given)
                yield Encoded(f"{name} row {start + i}", _content(found), cls, columns)


def _content(found: dict[str, Any] | None) -> bytes | str:
    """Return an image's bytes, or its file; a row without either is an image that cannot be read."""
    if found is None:
        return b""
    data: bytes | None = found["bytes"]
    path: str | None = found["path"]
    return data or path or b""
