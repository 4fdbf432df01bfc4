"""A source that reads a data set of the Hugging Face Hub, or a folder in its layout: ``source = "hf:NAME-OR-PATH"``.

It needs the ``datasets`` library: ``pip install 'fedssl[hf]'``. A local folder is read without the network.
"""

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.data.cache import Raw
from fedssl.data.decode import Parts, decode_parts
from fedssl.data.flaws import Flaws, plain_text
from fedssl.data.formats import is_image, suffix_of
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.folder import note_unless_image, subfolders
from fedssl.data.sources.own_images import EncodedImages, entries_under, files_under, is_hidden
from fedssl.data.splits import find_twins, group_by_role, role_of
from fedssl.data.target import Encoded

ROWS_AT_ONCE = 256
"""Number of rows of a table that are read at once."""

IMAGE_KINDS = ("Image", "binary", "string")
"""A column of images may hold these kinds of values: images, bytes of image files, or paths of image files."""

LABEL_KINDS = ("ClassLabel", "string", "large_string", "bool", "int", "uint")
"""A column of classes may hold these kinds of values; integers may have any width."""

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
"""Suffixes of files that the ``datasets`` library unpacks."""

SAVED = ("dataset_dict.json", "state.json")
"""Files by which ``save_to_disk`` marks a folder: the first with several splits, the second with one split."""


class Hf(EncodedImages):
    """A data set with a column of images and one of classes; other columns of text or numbers are kept as columns.

    A local folder has the Hub's layout (parquet files, images, ...), or ``save_to_disk`` wrote it. In the Hub's layout,
    the library finds splits with names other than train, validation and test only in files such as
    ``data/unlabeled-00000-of-00001.parquet``.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"name"})

    name: str = Field(description="name of the data set on the Hub, or path of a local folder")
    config: str | None = Field(None, description="configuration of the data set, if it has several")
    revision: str | None = Field(
        None, description="version of the data set on the Hub: a branch, tag or commit"
    )
    image_column: str | None = Field(
        None, description="name of the column of images; unset: the only one"
    )
    label_column: str | None = Field(
        None, description="name of the column of classes; unset: the only one"
    )

    def read(self) -> Raw:
        """Return the images of the splits for training, for test or else validation, and of unlabeled images.

        Splits may have other usual names, such as ``dev`` or ``Testing`` (`fedssl.data.splits`).

        Raises:
            InputError: The library or the data set is missing, or it is not clear which columns to use.
        """
        splits = self._load()
        found = group_by_role(splits)
        same = find_twins(splits)
        if same or len(found["train"]) > 1:
            several = same or found["train"]
            raise self.source_error(
                f"the splits {several} are the same split", "give this name to one of them only"
            )
        if not found["train"]:
            raise self.source_error("has no split 'train'", f"it has {sorted(splits)}")
        train_name = found["train"][0]
        train = splits[train_name]
        image = self._column(train, self.image_column, "image_column", ("Image",), IMAGE_KINDS)
        label = self._column(train, self.label_column, "label_column", ("ClassLabel",), LABEL_KINDS)
        names, number = _classes(train, label)
        chosen = {"train": [train_name, *found["unlabeled"]]}
        tests = found["test"] + found["validation"]
        if tests:
            chosen["test"] = tests[:1]
        for name in (name for several in chosen.values() for name in several):
            if image not in splits[name].features:
                raise self.source_error(
                    f"split {name!r} has no column {image!r}, which {train_name!r} has"
                )
        parts: Parts = {
            part: partial(_items, splits, several, image, label, number)
            for part, several in chosen.items()
        }
        flaws = Flaws()
        read = [name for several in chosen.values() for name in several]
        flaws.remark(*_remarks(chosen, [name for name in splits if name not in read]))
        self._note_unread_files(splits, image, flaws)
        blocks = decode_parts(parts, self.geometry, flaws)
        return Raw(
            class_names=names,
            train=blocks["train"],
            test=blocks.get("test"),
            flips=self.flips,
            flaws=flaws,
        )

    def files(self) -> Iterator[str]:
        """Yield the files of a local folder; a data set on the Hub has none."""
        folder = self.expand_home(self.name)
        if folder.is_dir():
            yield from files_under(str(folder.absolute()))

    def _note_unread_files(self, splits: dict[str, Any], image: str, flaws: Flaws) -> None:
        """Note every image file or table of a local folder that the library put into no split.

        Raises:
            InputError: A folder or file has the name of a split, but the library put its images into another split.
        """
        folder = self.expand_home(self.name)
        if not folder.is_dir() or any((folder / mark).is_file() for mark in SAVED):
            return
        roles = {role_of(name) for name in splits}
        entries = [Path(entry.path) for entry in entries_under(str(folder))]
        if not any(is_image(path.name) for path in entries):
            self._check_roles(roles, (path.stem.split("-")[0] for path in entries), "file")
            self._note_unread_tables(folder, entries, flaws)
            return
        self._check_roles(roles, subfolders(folder, folder), "folder")
        owners: dict[str, str] = {}
        for name, split in splits.items():
            for path in _paths(split, image):
                other = owners.setdefault(path, name)
                if other != name:
                    raise self.source_error(
                        f"the library put {plain_text(path)} into the splits {other!r} and {name!r}",
                        "no class or folder below a split may have the name of a split: rename it",
                    )
        taken = owners.keys()
        if not taken:
            return  # tables contain the images; the files beside the tables are no data
        note = flaws.leave_out if self.config or _lists_its_files(folder) else flaws.add
        for entry in entries_under(str(folder)):
            if entry.name.startswith("metadata.") or entry.name.lower().endswith(ARCHIVES):
                continue  # the library reads metadata and unpacks archives
            if note_unless_image(entry, flaws) and os.path.realpath(entry.path) not in taken:
                note("images lie in no split that the library found", [entry.path])

    def _note_unread_tables(self, folder: Path, entries: Sequence[Path], flaws: Flaws) -> None:
        """Note every table of a local folder that the library put into no split.

        Raises:
            InputError: A table or its folder has the name of a split, but the library put the table into another split.
        """
        import datasets

        with tempfile.TemporaryDirectory(prefix="fedssl-") as copy:
            builder = datasets.load_dataset_builder(str(folder), self.config, cache_dir=copy)
        found = builder.config.data_files or {}
        taken = {
            os.path.realpath(file): str(name) for name, files in found.items() for file in files
        }
        suffixes = {suffix_of(path) for path in taken}
        note = flaws.leave_out if self.config or _lists_its_files(folder) else flaws.add
        for path in entries:
            if is_hidden(path.name) or suffix_of(path.name) not in suffixes:
                continue
            split = taken.get(os.path.realpath(path))
            if split is None:
                note("tables lie in no split that the library found", [str(path)])
                continue
            words = (re.split(r"[\d\W_]+", part)[0] for part in path.relative_to(folder).parts)
            for word in words:
                if role_of(word) not in (None, role_of(split)):
                    raise self.source_error(
                        f"{word!r} is the name of a split, but the library put {plain_text(str(path))} into {split!r}",
                        f"call it {role_of(word)}-00000-of-00001, in a folder 'data'",
                    )

    def _check_roles(self, roles: Collection[str | None], names: Iterable[str], what: str) -> None:
        """Refuse names of folders or files that name a split, if the library has no such split.

        Args:
            roles: Splits that the library found.
            names: Names to check.
            what: Word for the names in the message.
        """
        for name in names:
            role = role_of(name)
            if role is not None and role not in roles:
                raise self.source_error(
                    f"the {what} {name!r} has the name of a split, but the library put its images into another",
                    f"call it {role!r}, as the library calls that split; a file {role}-00000-of-00001",
                )

    def _load(self) -> Any:
        """Return the splits of the data set, by name."""
        try:
            import datasets
        except ImportError:
            raise self.source_error(
                "needs the 'datasets' library, which is not installed", "pip install 'fedssl[hf]'"
            ) from None
        folder = self.expand_home(self.name)
        if not folder.is_dir() and (
            self.name.startswith((".", "/", "~")) or self.name.count("/") > 1
        ):
            raise self.not_found_error("folder", self.name)
        shown = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            if any((folder / mark).is_file() for mark in SAVED):
                saved = datasets.load_from_disk(str(folder))
                return saved if isinstance(saved, dict) else {"train": saved}
            if not folder.is_dir():
                return datasets.load_dataset(self.name, self.config, revision=self.revision)
            return _read_folder(folder, self.config)
        except Exception as error:  # the library and the Hub raise many types of errors
            said = " ".join(str(error).split()) or "no reason given"
            raise self.source_error(
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
        """Return the column that a setting names, or else the only column of a wanted kind.

        Args:
            split: The split of training images.
            named: Value of the setting; None if it is not set.
            setting: Name of the setting.
            wanted: Kinds of columns that are used if the setting is not set.
            possible: Kinds of columns that the setting may name.

        Raises:
            InputError: There is no such column, or there are several; or the column holds values of another kind.
        """
        field, columns = f"data.{setting}", split.features
        if named is not None and named not in columns:
            raise InputError(
                field, f"there is no column {named!r}", suggest_nearest(named, columns)
            )
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


def _lists_its_files(folder: Path) -> bool:
    """Say whether a folder's README lists the files of each split; other files are then left out on purpose."""
    readme = folder / "README.md"
    return readme.is_file() and "data_files" in readme.read_text(encoding="utf-8", errors="replace")


def _remarks(chosen: Mapping[str, Sequence[str]], unread: Sequence[str]) -> list[str]:
    """Return one sentence that says how each split is used; none if the only splits are ``train`` and ``test``."""
    if not unread and chosen["train"] == ["train"] and chosen.get("test", ["test"]) == ["test"]:
        return []
    test = ", ".join(chosen.get("test", [])) or "a share of the training images"
    said = f"training images: {', '.join(chosen['train'])}, test images: {test}"
    return [said + (f", splits that are not read: {', '.join(unread)}" if unread else "")]


def _paths(split: Any, image: str) -> Iterator[str]:
    """Yield the real paths of a split's image files; stop if a table holds the images' bytes."""
    import datasets

    if image not in split.features or _kind(split.features[image]) not in IMAGE_KINDS:
        return
    plain = split.cast_column(image, datasets.Image(decode=False))
    for start in range(0, len(plain), ROWS_AT_ONCE):
        for row in plain[start : start + ROWS_AT_ONCE][image]:
            if row is not None and row["bytes"] is not None:
                return
            if row is not None and row["path"]:
                yield os.path.realpath(row["path"])


def _kind(feature: Any) -> str:
    """Return the kind of values in a column: the type of plain values without its width, else the kind of feature."""
    dtype = feature.dtype if type(feature).__name__ == "Value" else type(feature).__name__
    return str(dtype).rstrip("0123456789")


def _classes(train: Any, label: str) -> tuple[tuple[str, ...], Callable[[Any], int]]:
    """Return the names of classes, and a function that turns a value of the column into a class, -1 if it is none."""
    names = getattr(train.features[label], "names", None)
    if names:
        return tuple(names), int
    values = sorted(set(train.unique(label)) - {None, UNKNOWN})
    numbers = {value: number for number, value in enumerate(values)}
    return tuple(str(value) for value in values), lambda value: numbers.get(value, UNKNOWN)


def _read_folder(folder: Path, config: str | None) -> Any:
    """Return the splits of a local folder.

    The library copies the data. The copy lies in a temporary folder that is removed with the splits: in the library's
    own cache, it could be mistaken for a data set of the same name on the Hub.
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
    """Return the bytes of an image or the path of its file; no bytes if there is neither, which cannot be read."""
    if found is None:
        return b""
    data: bytes | None = found["bytes"]
    path: str | None = found["path"]
    return data or path or b""
