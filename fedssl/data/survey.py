"""Look at a folder or an npz file of images: classes, labels, sizes, colors, and folders that look like sites."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedssl.core.errors import InputError
from fedssl.data.sources.folder import Folder, class_folders, images_in, subfolders
from fedssl.data.sources.npz import Npz
from fedssl.data.target import Encoded, header_of

MOST_OPENED = 500
"""The headers of at most this many files are read, evenly spread over all files."""

SITE = re.compile(r"site|hospital|clinic|cent(er|re)|client|institut|scanner|ward|lab", re.I)
"""Words in the names of folders that stand for sites and not for classes."""

NO_SITE = "."
"""Value of the column ``folder`` for images that lie directly in the folder of their class."""


@dataclass(frozen=True)
class Survey:
    """What a folder or an npz file of images holds.

    Args:
        class_counts: Number of training images by class, in the order of the classes.
        num_unlabeled: Number of training images without a class.
        num_test: Number of test images; 0 if the folder has none of its own.
        sites: Number of training images by site; empty if the folders do not look like sites.
        sizes: (height, width) in pixels and their number, of the files that were opened.
        channels: Number of files by their number of channels, of the files that were opened.
        unreadable: Names of files that could not be opened, of those that were tried.
        can_convert: Whether images can be scaled and converted while they are read.
    """

    class_counts: dict[str, int]
    num_unlabeled: int
    num_test: int
    sites: dict[str, int]
    sizes: Counter[tuple[int, int]]
    channels: Counter[int]
    unreadable: tuple[str, ...]
    can_convert: bool = True

    @property
    def num_labeled(self) -> int:
        """Number of training images with a class."""
        return sum(self.class_counts.values())

    @property
    def usual_side(self) -> int:
        """Median of the shorter sides in pixels."""
        return int(statistics.median(min(size) for size in self.sizes.elements()))


def survey_folder(path: str) -> Survey:
    """Return what a folder of images holds, by its files' names and the headers of some files; nothing is written.

    Args:
        path: The folder, as in ``source = "folder:PATH"``.

    Raises:
        InputError: The folder cannot be read as a data source, or its folders are sites that hold the classes.
    """
    layout = Folder(name=path).find_layout()
    classes = class_folders(layout.train, layout.root)
    _refuse_sites_above_classes(layout.train, classes)
    if len(classes) < 2:
        problem = f"holds {len(classes)} class folders"
        remedy = "put the images of each class into a subfolder of its own, and those without a class into unlabeled/"
        raise InputError(path, problem, remedy)
    numbers = {name: number for number, name in enumerate(classes)}
    train = list(images_in(layout.homes, numbers, layout.root))
    test = [] if layout.test is None else list(images_in([layout.test], numbers, layout.root))
    if not train:
        raise InputError(path, "holds no images", "fedssl reads PNG, JPEG, TIFF and similar files")
    counts = Counter(item.label for item in train)
    sizes, channels, unreadable = _open_some(train)
    if not sizes:
        raise InputError(
            path, f"none of {len(unreadable)} images can be opened, such as {unreadable[0]}"
        )
    return Survey(
        {name: counts[number] for name, number in numbers.items()},
        sum(count for label, count in counts.items() if label < 0),
        sum(item.label >= 0 for item in test),
        _sites(train),
        sizes,
        channels,
        unreadable,
    )


def survey_npz(path: str) -> Survey:
    """Return what an npz file of images holds; nothing is written.

    Args:
        path: The file, as in ``source = "npz:PATH"``.

    Raises:
        InputError: The file cannot be read as a data source, or has fewer than two classes.
    """
    raw = Npz(name=path).read()
    (train,) = raw.train
    test = [] if raw.test is None else list(raw.test)
    if len(raw.class_names) < 2:
        problem = "has no labels" if not raw.class_names else "has one class only"
        raise InputError(path, problem, "give it labels of two classes or more")
    counts = Counter(train.labels.tolist())
    channels, height, width = train.images.shape[1:]
    return Survey(
        {name: counts[number] for number, name in enumerate(raw.class_names)},
        sum(count for label, count in counts.items() if label < 0),
        sum(int((block.labels >= 0).sum()) for block in test),
        {},
        Counter({(height, width): len(train.labels)}),
        Counter({channels: len(train.labels)}),
        (),
        can_convert=False,
    )


def _refuse_sites_above_classes(root: Path, folders: Sequence[str]) -> None:
    """Refuse folders of sites that hold the folders of classes: fedssl reads sites below classes."""
    inside = [set(subfolders(root / name, root)) for name in folders]
    if len(folders) > 1 and all(map(SITE.search, folders)) and len(set.intersection(*inside)) > 1:
        site, cls = folders[0], min(set.intersection(*inside))
        raise InputError(
            str(root),
            f"its folders look like sites ({', '.join(folders[:4])}) that hold the classes",
            f"put each site below its class: {cls}/{site}/ in place of {site}/{cls}/",
        )


def _sites(items: Sequence[Encoded]) -> dict[str, int]:
    """Return the number of images by the folder below their class; empty if not every image lies in such a folder."""
    counts = Counter(str(item.columns["folder"]) for item in items)
    return {} if NO_SITE in counts or len(counts) < 2 else dict(sorted(counts.items()))


def _open_some(
    items: Sequence[Encoded],
) -> tuple[Counter[tuple[int, int]], Counter[int], tuple[str, ...]]:
    """Return sizes, channels and the unreadable ones of some files, of which only the headers are read."""
    step = max(1, len(items) // MOST_OPENED)
    sizes, channels = Counter[tuple[int, int]](), Counter[int]()
    unreadable = []
    for item in items[::step]:
        try:
            size, found = header_of(item.content)
        except Exception:  # damaged files make Pillow's readers raise many types of errors
            unreadable.append(item.name)
            continue
        sizes[size] += 1
        channels[found] += 1
    return sizes, channels, tuple(unreadable)
