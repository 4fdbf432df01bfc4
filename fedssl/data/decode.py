"""Decodes images, such as PNG and JPEG files, to bytes of one shape; images that do not fit become flaws."""

import math
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from fedssl.core.errors import InputError
from fedssl.data.blocks import Block
from fedssl.data.flaws import Flaws, plain_text
from fedssl.data.formats import FORMATS, NotRegularError, has_several_frames, open_image

BLOCK_SIZE = 256
"""A block has at most this many images."""

BLOCK_BYTES = 2**25
"""The decoded images of a block take at most this many bytes, if more than one image is in it."""

WORTH_A_THREAD = 8192
"""Threads decode faster if an encoded image has at least this many bytes; on 2 cores, that is near 150x150 pixels."""

MOST_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded: in color, they would take more than half a GB.

This is Pillow's own limit.
"""

LARGE = 2**24
"""Images with more pixels are decoded one at a time, so that memory does not grow with the number of cores."""

CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3}
"""Number of channels by Pillow's name of a mode; "P", a palette, counts as colors."""

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes with more than 8 bits a channel; Pillow would clip their values to 8 bits instead of scaling them."""

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag for the orientation of a camera, and the tag's values that swap height and width."""

UNREADABLE = "images cannot be read"

PASSING = "images cannot be read now"

TOO_LARGE = f"images have more than {MOST_PIXELS:,} pixels (scale them down before)"

_one_large = threading.Lock()


@dataclass(frozen=True)
class Flaw:
    """What is wrong with one image.

    Args:
        kind: The flaw as a phrase in the plural, as `Flaws.add` takes it.
        reason: Detail about this image; empty if there is none.
        passing: Whether the reason may pass, so that the same file can be read later.
    """

    kind: str
    reason: str = ""
    passing: bool = False


@dataclass(frozen=True)
class Encoded:
    """One encoded image.

    Args:
        name: Name of the image in messages.
        content: Path of the file, or the bytes of the file.
        label: Class of the image; -1 if nobody knows it.
        columns: Further facts about the image, by the column's name.
    """

    name: str
    content: str | bytes
    label: int
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Geometry:
    """The size and channels that a user asks for.

    Args:
        size: (H, W) in pixels; images are scaled to it, and their longer side is cut. None: all images must have one
            size already.
        channels: 1 or 3; images are converted to it and lose their transparency. None: all images must have the same
            number of channels already.
    """

    size: tuple[int, int] | None
    channels: int | None


Parts = dict[str, Callable[[], Iterator[Encoded]]]


def decode_parts(parts: Parts, geometry: Geometry, flaws: Flaws) -> dict[str, Iterator[Block]]:
    """Return the decoded blocks of every part.

    If the geometry leaves the size or channels open, they are those of most images of all parts; images with another
    size or number of channels are flaws.

    Args:
        parts: Images to decode, by the part's name; each part is read twice if the geometry leaves something open.
        geometry: Size and channels that every image is to get.
        flaws: Filled with the images that cannot be read or do not fit.
    """
    size, channels = geometry.size, geometry.channels
    if size is None or channels is None:
        usual_size, usual_channels = _most_common(parts)
        size, channels = size or usual_size, channels or usual_channels
    target = Target(
        size,
        channels,
        geometry.size is not None,
        geometry.channels is not None,
        "as most are (data.size scales them)",
        f"(data.channels = {channels} converts them)",
    )
    return {name: decode(items(), target, flaws) for name, items in parts.items()}


@dataclass(frozen=True)
class Target:
    """The size and channels of every decoded image, and whether other images are changed or refused.

    Args:
        size: (H, W) in pixels.
        channels: 1 or 3.
        scales, converts: Whether to scale images of another size, and to convert images with other channels. If not,
            these images are refused.
        size_hint, channels_hint: End of the message about an image that is refused for its size or channels: why this
            is asked for, and which setting changes images.
    """

    size: tuple[int, int]
    channels: int
    scales: bool
    converts: bool
    size_hint: str
    channels_hint: str

    def pixels(self, item: Encoded) -> npt.NDArray[np.uint8] | Flaw:
        """Return the bytes of an image, (C, H, W), or its flaw.

        Raises:
            InputError: There is too little memory to decode the image.
        """
        try:
            with open_image(item.content) as image:
                if math.prod(image.size) <= LARGE:
                    return self._pixels(image)
                with _one_large:
                    return self._pixels(image)
        except MemoryError:
            problem = f"{plain_text(item.name)}: there is too little memory to decode it"
            raise InputError("data.source", problem, "scale it down, or free memory") from None
        except Exception as error:  # damaged files make Pillow's readers raise many types of errors
            return _flaw_from(error)

    def _pixels(self, image: ImageFile.ImageFile) -> npt.NDArray[np.uint8] | Flaw:
        """Return the bytes of an open image, (C, H, W), or its flaw."""
        height, width = self.size
        mode = "L" if self.channels == 1 else "RGB"
        if has_several_frames(image):
            return Flaw("images have several frames (give each a file of its own)")
        if _is_deep(image):
            return Flaw("images have more than 8 bits a channel")
        channels = CHANNELS.get(image.mode, len(image.getbands())) + _has_alpha_aside(image)
        if channels != self.channels and not self.converts:
            return Flaw(
                f"images have {channels} channels, not {self.channels} {self.channels_hint}"
            )
        image.load()  # without this, EXIF data behind the pixels of a PNG would be missed
        is_upright = image.getexif().get(ORIENTATION, 1) == 1
        upright = image if is_upright else ImageOps.exif_transpose(image)
        if upright.size != (width, height) and not self.scales:
            return Flaw(f"images are not {height}x{width} {self.size_hint}")
        # Colors are converted before scaling, because Pillow cannot mix the numbers of a palette.
        plain = upright if upright.mode == mode else upright.convert(mode)
        if plain.size != (width, height):
            plain = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
        array = np.asarray(plain, dtype=np.uint8)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def decode(items: Iterator[Encoded], target: Target, flaws: Flaws) -> Iterator[Block]:
    """Yield decoded images in order, a block at a time.

    Args:
        items: Images to decode.
        target: Size and channels that every image is to get.
        flaws: Filled with the images that cannot be read or do not fit the target.
    """
    at_once = max(1, min(BLOCK_SIZE, BLOCK_BYTES // (target.channels * math.prod(target.size))))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while batch := list(islice(items, at_once)):
            pixels, kept = [], []
            for item, found in zip(batch, _decode_batch(batch, target, threads), strict=True):
                if isinstance(found, Flaw):
                    named = f"{item.name}: {found.reason}" if found.reason else item.name
                    flaws.add(found.kind, [named])
                    if found.passing and isinstance(item.content, str):
                        flaws.passing.append(item.content)
                else:
                    pixels.append(found)
                    kept.append(item)
            if kept:
                columns = {
                    name: [item.columns.get(name) for item in kept]
                    for name in dict.fromkeys(name for item in kept for name in item.columns)
                }
                labels = np.array([item.label for item in kept], dtype=np.int64)
                names = [item.name for item in kept]
                yield Block(np.stack(pixels), labels, None, columns, names)


def _decode_batch(
    batch: list[Encoded], target: Target, threads: ThreadPoolExecutor
) -> list[npt.NDArray[np.uint8] | Flaw]:
    """Return the bytes or the flaw of each image; threads decode them if that is faster."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bad metadata, which is no flaw
        if _num_bytes(batch[0]) < WORTH_A_THREAD:
            return [target.pixels(item) for item in batch]
        return list(threads.map(target.pixels, batch))


def _num_bytes(item: Encoded) -> int:
    if isinstance(item.content, bytes):
        return len(item.content)
    try:
        return os.stat(item.content).st_size  # noqa: PTH116
    except OSError:
        return 0


def _most_common(parts: Parts) -> tuple[tuple[int, int], int]:
    """Return the most common size, (H, W), and number of channels, as the images' headers tell."""
    sizes: Counter[tuple[int, int]] = Counter()
    channels: Counter[int] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for item in chain.from_iterable(items() for items in parts.values()):
            try:
                with open_image(item.content) as image:
                    sizes[image.size if _is_turned(image) else image.size[::-1]] += 1
                    channels[CHANNELS.get(image.mode, 0)] += 1
            except Exception:  # the image becomes a flaw when its pixels are read
                continue
    most = sizes.most_common(1)[0][0] if sizes else (1, 1)
    return most, 1 if channels[1] > channels[3] else 3


def _flaw_from(error: Exception) -> Flaw:
    """Return the flaw of an image whose reading raised an error.

    An `OSError` with a number comes from the operating system and may pass; Pillow raises `OSError` without a number
    about damaged files.
    """
    if isinstance(error, NotRegularError):
        return Flaw(UNREADABLE, "not a regular file")
    if isinstance(error, Image.DecompressionBombError):
        found = re.search(r"\d+", str(error))
        return Flaw(TOO_LARGE, f"{int(found[0]):,} pixels" if found else "")
    if isinstance(error, OSError) and error.errno is not None:
        return Flaw(PASSING, error.strerror or type(error).__name__, passing=True)
    if isinstance(error, UnidentifiedImageError):
        return Flaw(UNREADABLE, f"none of the formats {', '.join(FORMATS)}")
    return Flaw(UNREADABLE, plain_text(str(error)) or type(error).__name__)


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Say whether an image has more than 8 bits a channel; for color images, only Pillow's list of tiles shows this."""
    return image.mode in DEEP_MODES or (
        image.format in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in image.tile)
    )


def _has_alpha_aside(image: ImageFile.ImageFile) -> bool:
    """Say whether a PNG without an alpha channel declares some of its colors transparent."""
    found = image.info.get("transparency") if image.format == "PNG" else None
    return any(value < 255 for value in found) if isinstance(found, bytes) else found is not None


def _is_turned(image: ImageFile.ImageFile) -> bool:
    """Say whether EXIF data swaps height and width, as far as the header tells."""
    if image.format == "TIFF":
        return False  # Pillow has swapped height and width already
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode the whole image to look for EXIF data behind its pixels
    return image.getexif().get(ORIENTATION) in TURNED
