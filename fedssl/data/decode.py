"""Decodes many images to blocks of bytes of one shape; images that do not fit become flaws."""

import contextlib
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np

from fedssl.data.blocks import Block
from fedssl.data.flaws import Flaws
from fedssl.data.intensities import SCALED
from fedssl.data.target import Decoded, Encoded, Flaw, Reading, Target, header_of, num_frames_in

BLOCK_SIZE = 256
"""A block has at most this many images."""

BLOCK_BYTES = 2**25
"""The decoded images of a block take at most this many bytes, if more than one image is in it."""

WORTH_A_THREAD = 8192
"""Threads decode faster if an encoded image has at least this many bytes; on 2 cores, that is near 150x150 pixels."""

LARGE_SIDE = 128
"""A message proposes at most this size (pixels) for images that have many sizes."""

OTHER_FRAMES = {
    "first": "frames are not the first of their file",
    "middle": "frames are not the middle one of their file",
}
"""What is left out of files with several frames."""

MIXED_FRAMES = (
    "frames of one file may be both training and test images, which makes test accuracy too high: put files for test into "
    "a folder of their own"
)


@dataclass(frozen=True)
class Geometry:
    """The size and channels that a user asks for.

    Args:
        size: (H, W) in pixels; images are scaled to it, and their longer side is cut. None: all images must have one
            size already.
        channels: 1 or 3; images are converted to it and lose their transparency. None: all images must have the same
            number of channels already.
        reading: How files become images of 8 bits.
    """

    size: tuple[int, int] | None
    channels: int | None
    reading: Reading = field(default_factory=Reading)


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
    size, channels, size_hint = geometry.size, geometry.channels, ""
    if size is None or channels is None:
        sizes, usual_channels = _count_headers(parts)
        size, channels = size or sizes.most_common(1)[0][0], channels or usual_channels
        size_hint = _size_hint(sizes)
    target = Target(
        size,
        channels,
        geometry.size is not None,
        geometry.channels is not None,
        size_hint,
        f"(data.channels = {channels} converts them)",
        geometry.reading,
    )
    if geometry.reading.frames == "all" and "test" not in parts:
        flaws.remark(MIXED_FRAMES)
    return {name: decode(items(), target, flaws) for name, items in parts.items()}


def decode(items: Iterator[Encoded], target: Target, flaws: Flaws) -> Iterator[Block]:
    """Yield decoded images in order, a block at a time.

    Args:
        items: Images to decode.
        target: Size and channels that every image is to get.
        flaws: Filled with the images that cannot be read or do not fit the target.
    """
    if target.reading.frames == "all":
        items = _frame_by_frame(items)
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
                    continue
                pixels.append(found.pixels)
                kept.append(item)
                if found.rule is not None:
                    flaws.tell(f"images have more than 8 bits: {SCALED[found.rule]}")
                if found.left_out:
                    others = (f"{item.name}: frame {number + 1}" for number in found.left_out)
                    flaws.leave_out(OTHER_FRAMES[target.reading.frames], others)
            if kept:
                columns = {
                    name: [item.columns.get(name) for item in kept]
                    for name in dict.fromkeys(name for item in kept for name in item.columns)
                }
                labels = np.array([item.label for item in kept], dtype=np.int64)
                names = [item.name for item in kept]
                yield Block(np.stack(pixels), labels, None, columns, names)


def _frame_by_frame(items: Iterator[Encoded]) -> Iterator[Encoded]:
    """Yield every frame of every file as an item of its own."""
    for item in items:
        try:
            with _without_warnings():
                count = num_frames_in(item.content)
        except Exception:  # the file becomes a flaw when its pixels are read
            count = 1
        if count == 1:
            yield item
        for frame in range(count if count > 1 else 0):
            yield replace(item, name=f"{item.name}: frame {frame + 1}", frame=frame)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide the warnings of libraries about bad metadata, which are no flaws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode_batch(
    batch: list[Encoded], target: Target, threads: ThreadPoolExecutor
) -> list[Decoded | Flaw]:
    """Return each image or its flaw; threads decode them if that is faster."""
    with _without_warnings():
        if _num_bytes(batch[0]) < WORTH_A_THREAD:
            return [target.decode(item) for item in batch]
        return list(threads.map(target.decode, batch))


def _num_bytes(item: Encoded) -> int:
    if isinstance(item.content, bytes):
        return len(item.content)
    try:
        return os.stat(item.content).st_size  # noqa: PTH116
    except OSError:
        return 0


def _count_headers(parts: Parts) -> tuple[Counter[tuple[int, int]], int]:
    """Return how many files have each size, (H, W), and the number of channels of most, as their headers tell."""
    sizes: Counter[tuple[int, int]] = Counter()
    channels: Counter[int] = Counter()
    with _without_warnings():
        for item in chain.from_iterable(items() for items in parts.values()):
            try:
                size, own_channels = header_of(item.content)
            except Exception:  # the image becomes a flaw when its pixels are read
                continue
            sizes[size] += 1
            channels[own_channels] += 1
    return sizes or Counter([(1, 1)]), 1 if channels[1] > channels[3] else 3


def _size_hint(sizes: Counter[tuple[int, int]]) -> str:
    """Return why a size is asked for, and a setting that scales all images."""
    if 2 * max(sizes.values()) > sizes.total():
        return "as most are (data.size scales them)"
    sides = [side for size in sizes for side in size]
    shorter = sorted(min(size) for size in sizes.elements())
    side = min(2 ** int(math.log2(shorter[len(shorter) // 2])), LARGE_SIDE)
    return (
        f"as the largest group is; there are {len(sizes):,} sizes, with sides of {min(sides):,} to {max(sides):,} pixels "
        f"(data.size = {side} scales all)"
    )
