"""One image file, such as PNG, JPEG or DICOM, becomes bytes of the size and channels that are wanted, or it is a flaw."""

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from fedssl.core.errors import InputError
from fedssl.data.dicom import NEEDS_LIBRARY, NoLibraryError, read_frame, read_header
from fedssl.data.flaws import plain_text
from fedssl.data.formats import (
    FORMATS,
    NotRegularError,
    is_dicom,
    is_followed,
    num_frames,
    open_image,
)
from fedssl.data.intensities import Range, Rule, choose_range, to_bytes

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

PHOTOMETRIC = 262
"""The tag of TIFF files that says whether 0 is white."""

SEVERAL_FRAMES = "images have several frames (data.frames = 'first', 'middle' or 'all' reads them)"

SEVERAL_IN_PPM = "images are followed by another in the same file (give each a file of its own)"

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
        frame: Number of the frame to read, from 0; None: `Reading.frames` says which.
    """

    name: str
    content: str | bytes
    label: int
    columns: dict[str, Any] = field(default_factory=dict)
    frame: int | None = None


@dataclass(frozen=True)
class Reading:
    """How files become images of 8 bits.

    Args:
        intensities: Values that become 0 and 255 in gray images of more than 8 bits; None: as each image says or needs, see
            `fedssl.data.intensities.choose_range`.
        frames: What to read of a file with several frames.
    """

    intensities: Range | None = None
    frames: Literal["refuse", "first", "middle", "all"] = "refuse"


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Args:
        pixels: Bytes, (C, H, W).
        rule: How more than 8 bits became bytes; None if the image has 8 bits.
        left_out: Numbers of the other frames of the file, which are not read, from 0.
    """

    pixels: npt.NDArray[np.uint8]
    rule: Rule | None
    left_out: Sequence[int]


class _Frame(NamedTuple):
    """The number of a frame to read, and the numbers of the other frames of its file, which are not read."""

    number: int
    left_out: Sequence[int]


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
        reading: How files become images of 8 bits.
    """

    size: tuple[int, int]
    channels: int
    scales: bool
    converts: bool
    size_hint: str
    channels_hint: str
    reading: Reading = field(default_factory=Reading)

    def decode(self, item: Encoded) -> Decoded | Flaw:
        """Return a decoded image, or its flaw.

        Raises:
            InputError: There is too little memory to decode the image.
        """
        try:
            if is_dicom(item.content):
                return self._decode_dicom(item)
            with open_image(item.content) as image:
                if is_followed(image):
                    return Flaw(SEVERAL_IN_PPM)
                place = self._choose_frame(item, num_frames(image))
                if place is None:
                    return Flaw(SEVERAL_FRAMES, f"{num_frames(image):,} frames")
                image.seek(place.number)
                if math.prod(image.size) <= LARGE:
                    return self._decode_open(image, place)
                with _one_large:
                    return self._decode_open(image, place)
        except MemoryError:
            problem = f"{plain_text(item.name)}: there is too little memory to decode it"
            raise InputError("data.source", problem, "scale it down, or free memory") from None
        except Exception as error:  # damaged files make Pillow's readers raise many types of errors
            return _flaw_from(error)

    def _choose_frame(self, item: Encoded, count: int) -> _Frame | None:
        """Return the frame to read of a file with so many frames; None if the file is refused."""
        frames = self.reading.frames
        if item.frame is not None or count == 1:
            return _Frame(item.frame or 0, ())
        if frames == "refuse":
            return None
        number = count // 2 if frames == "middle" else 0
        return _Frame(number, [other for other in range(count) if other != number])

    def _decode_open(self, image: ImageFile.ImageFile, place: _Frame) -> Decoded | Flaw:
        """Return an open image, decoded, or its flaw."""
        is_gray, is_deep = image.mode in DEEP_MODES, _is_deep(image)
        if is_deep and not is_gray:
            return Flaw("color images have more than 8 bits a channel (save with 8)")
        channels = _num_channels(image) + _has_alpha_aside(image)
        flaw = self._check_channels(channels)
        if flaw is not None:
            return flaw
        image.load()  # without this, EXIF data behind the pixels of a PNG would be missed
        orientation, rule = image.getexif().get(ORIENTATION, 1), None
        plain: Image.Image = image
        if is_deep:
            values = np.asarray(image)
            limits, rule = choose_range(values, self.reading.intensities)
            plain = Image.fromarray(to_bytes(values, limits, inverted=_is_inverted(image)))
            plain.getexif()[ORIENTATION] = orientation
        upright = plain if orientation == 1 else ImageOps.exif_transpose(plain)
        return self._fit(upright, rule, place)

    def _decode_dicom(self, item: Encoded) -> Decoded | Flaw:
        """Return an image of a DICOM file, decoded, or its flaw."""
        header = read_header(item.content)
        place = self._choose_frame(item, header.num_frames)
        if place is None:
            return Flaw(SEVERAL_FRAMES, f"{header.num_frames:,} frames")
        flaw = self._check_channels(header.channels)
        if flaw is not None:
            return flaw
        found = read_frame(item.content, place.number, MOST_PIXELS)
        if isinstance(found, Image.Image):
            return self._fit(found, None, place)
        limits, rule = choose_range(found.counted, self.reading.intensities, found.window)
        plain = Image.fromarray(to_bytes(found.values, limits, inverted=found.inverted))
        return self._fit(plain, rule if found.is_deep else None, place)

    def _check_channels(self, channels: int) -> Flaw | None:
        """Return a flaw if an image has other channels and is not to be converted."""
        if channels == self.channels or self.converts:
            return None
        return Flaw(f"images have {channels} channels, not {self.channels} {self.channels_hint}")

    def _fit(self, upright: Image.Image, rule: Rule | None, place: _Frame) -> Decoded | Flaw:
        """Return an upright image of 8 bits with the target's size and channels, or its flaw."""
        height, width = self.size
        mode = "L" if self.channels == 1 else "RGB"
        if upright.size != (width, height) and not self.scales:
            return Flaw(f"images are not {height}x{width} {self.size_hint}")
        # Colors are converted before scaling, because Pillow cannot mix the numbers of a palette.
        plain = upright if upright.mode == mode else upright.convert(mode)
        if plain.size != (width, height):
            plain = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
        array = np.asarray(plain, dtype=np.uint8)
        pixels = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        return Decoded(pixels, rule, place.left_out)


def header_of(content: str | bytes) -> tuple[tuple[int, int], int]:
    """Return the size, (H, W), and the number of channels of a file's first frame."""
    if is_dicom(content):
        header = read_header(content)
        return header.size, header.channels
    with open_image(content) as image:
        width, height = image.size
        return (width, height) if _is_turned(image) else (height, width), _num_channels(image)


def num_frames_in(content: str | bytes) -> int:
    """Return the number of frames of a file."""
    if is_dicom(content):
        return read_header(content).num_frames
    with open_image(content) as image:
        return num_frames(image)


def _flaw_from(error: Exception) -> Flaw:
    """Return the flaw of an image whose reading raised an error.

    An `OSError` with a number comes from the operating system and may pass; Pillow raises `OSError` without a number
    about damaged files.
    """
    if isinstance(error, NoLibraryError):
        return Flaw(NEEDS_LIBRARY)
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


def _num_channels(image: ImageFile.ImageFile) -> int:
    """Return 1 for gray and 3 for color, and a channel more for transparency; an animation's frames are colors."""
    if image.format == "GIF" and image.mode == "RGBA":
        return 3
    return CHANNELS.get(image.mode, len(image.getbands()))


def _is_inverted(image: ImageFile.ImageFile) -> bool:
    """Say whether 0 is white; Pillow inverts such TIFF files itself if they have 8 bits."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == 0


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
