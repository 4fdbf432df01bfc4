"""Encoded images, such as PNG and JPEG files, to bytes of one shape; what does not fit is counted and named."""

import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

from fedssl.data.blocks import Block
from fedssl.data.flaws import Flaws

BLOCK_SIZE = 256
"""Images decoded at once, at most."""

BLOCK_BYTES = 2**25
"""Bytes that the images decoded at once may take."""

WORTH_A_THREAD = 8192
"""Bytes of an encoded image from which on threads decode faster than none: 2 cores break even near 150x150 pixels."""

CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3}
"""Channels by Pillow's name of a mode; a palette stands for colors."""

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes with more than 8 bits a channel, which Pillow cuts off rather than scales."""

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag for how a camera was held, and its values that swap height and width."""


@dataclass(frozen=True)
class Encoded:
    """One encoded image.

    Args:
        name: For messages.
        content: The file's path, or its bytes.
        label: Class; -1 if nobody knows it.
        columns: What else is known of it.
    """

    name: str
    content: str | bytes
    label: int
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Geometry:
    """What every image is to be.

    Args:
        size: (H, W); images are scaled, and cut at the longer side, to it. None: all must have one size already.
        channels: 1 or 3; images are converted to it, and lose their transparency. None: all must have the same already.
    """

    size: tuple[int, int] | None
    channels: int | None


Parts = dict[str, Callable[[], Iterator[Encoded]]]


def decode_parts(parts: Parts, geometry: Geometry, flaws: Flaws) -> dict[str, Iterator[Block]]:
    """Return the blocks of every part; what the geometry leaves open is what most images of all parts have.

    Args:
        parts: What to decode by name; each is gone through twice if the geometry leaves something open.
        geometry: What every image is to be.
        flaws: Filled with images that cannot be read, or are of another size or number of channels.
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
    """What images become, and whether those that are not so already are changed or refused.

    Args:
        size: (H, W).
        channels: 1 or 3.
        scales, converts: Whether images of another size, or number of channels, are changed.
        size_hint, channels_hint: End the message about an image that is refused for it: why, and what changes it.
    """

    size: tuple[int, int]
    channels: int
    scales: bool
    converts: bool
    size_hint: str
    channels_hint: str

    def pixels(self, item: Encoded) -> npt.NDArray[np.uint8] | str:
        """Return an image's bytes, (C, H, W), or what is wrong with it."""
        height, width = self.size
        mode = "L" if self.channels == 1 else "RGB"
        try:
            with _opened(item) as image:
                if _is_deep(image):
                    return "images have more than 8 bits a channel"
                channels = CHANNELS.get(image.mode, len(image.getbands()))
                if channels != self.channels and not self.converts:
                    return (
                        f"images have {channels} channels, not {self.channels} {self.channels_hint}"
                    )
                image.load()  # or else EXIF behind a PNG's pixels is missed
                is_upright = image.getexif().get(ORIENTATION, 1) == 1
                upright = image if is_upright else ImageOps.exif_transpose(image)
                if upright.size != (width, height) and not self.scales:
                    return f"images are not {height}x{width} {self.size_hint}"
                # Colors come before scaling: Pillow cannot mix the numbers of a palette.
                plain = upright if upright.mode == mode else upright.convert(mode)
                if plain.size != (width, height):
                    plain = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
                array = np.asarray(plain, dtype=np.uint8)
        except Exception:  # whatever a damaged file makes Pillow's many readers raise
            return "images cannot be read"
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def decode(items: Iterator[Encoded], target: Target, flaws: Flaws) -> Iterator[Block]:
    """Yield decoded images in order, a block at a time.

    Args:
        items: What to decode.
        target: What every image is to be.
        flaws: Filled with images that cannot be read, or are not and do not become that.
    """
    at_once = max(1, min(BLOCK_SIZE, BLOCK_BYTES // (target.channels * math.prod(target.size))))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while batch := list(islice(items, at_once)):
            pixels, kept = [], []
            for item, found in zip(batch, _decoded(batch, target, threads), strict=True):
                if isinstance(found, str):
                    flaws.add(found, [item.name])
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


def _decoded(
    batch: list[Encoded], target: Target, threads: ThreadPoolExecutor
) -> list[npt.NDArray[np.uint8] | str]:
    """Return what `Target.pixels` makes of each image, by threads where that is faster."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata; a flaw is what has no pixels
        if _num_bytes(batch[0]) < WORTH_A_THREAD:
            return [target.pixels(item) for item in batch]
        return list(threads.map(target.pixels, batch))


def _num_bytes(item: Encoded) -> int:
    if isinstance(item.content, bytes):
        return len(item.content)
    path = Path(item.content)
    return path.stat().st_size if path.exists() else 0


def _most_common(parts: Parts) -> tuple[tuple[int, int], int]:
    """Return (size, channels) of most images, by their headers."""
    sizes: Counter[tuple[int, int]] = Counter()
    channels: Counter[int] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for item in chain.from_iterable(items() for items in parts.values()):
            try:
                with _opened(item) as image:
                    sizes[image.size if _is_turned(image) else image.size[::-1]] += 1
                    channels[CHANNELS.get(image.mode, 0)] += 1
            except Exception:  # it is counted when its pixels are read
                continue
    most = sizes.most_common(1)[0][0] if sizes else (1, 1)
    return most, 1 if channels[1] > channels[3] else 3


def _opened(item: Encoded) -> ImageFile.ImageFile:
    content = item.content
    return Image.open(content if isinstance(content, str) else io.BytesIO(content))


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Say whether an image has more than 8 bits a channel; Pillow shows those of colors only in the file's layout."""
    return image.mode in DEEP_MODES or (
        image.format in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in image.tile)
    )


def _is_turned(image: ImageFile.ImageFile) -> bool:
    """Say whether EXIF swaps height and width, as far as the header tells."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode all of it to look behind its pixels
    return image.getexif().get(ORIENTATION) in TURNED
