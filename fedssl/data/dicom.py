"""Reads DICOM images: values in their unit, the window in which people look at them, and colors as bytes.

Reference: DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (rescale), C.11.2 (window). What is left out: tables of values (VOI LUT) and
windows of a curved shape (SIGMOID), of which only the range is taken.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fedssl.core.extras import install_command, is_installed
from fedssl.data.formats import EXTRA, check_regular
from fedssl.data.intensities import Range, Values

NEEDS_LIBRARY = (
    f"images are DICOM files and need pydicom, which is not installed ({install_command(EXTRA)})"
)


class NoLibraryError(Exception):
    """The library pydicom is not installed."""


@dataclass(frozen=True)
class Header:
    """What a DICOM file says of its pixels before they are decoded.

    Args:
        size: (H, W) in pixels.
        channels: 1 or 3.
        num_frames: Number of frames.
    """

    size: tuple[int, int]
    channels: int
    num_frames: int


@dataclass(frozen=True)
class Gray:
    """A gray frame.

    Args:
        values: Values after rescaling, (H, W), such as Hounsfield units.
        window: The first window of the frame; for pixels of 8 bits without a window, the values of these bits; else None.
        inverted: Whether the least value is the brightest one (MONOCHROME1).
        is_deep: Whether pixels have more than 8 bits.
        counted: The values that are no padding; the least and the greatest value are sought among them.
    """

    values: Values
    window: Range | None
    inverted: bool
    is_deep: bool
    counted: Values


def read_header(content: str | bytes) -> Header:
    """Return the header of a file, or of its bytes.

    Raises:
        NoLibraryError: pydicom is not installed.
        Exception: pydicom raises many types of errors about a damaged file.
    """
    return _header_of(_open(content))


def read_frame(content: str | bytes, frame: int, most_pixels: int) -> "Gray | Image.Image":
    """Return one frame: a gray one, or colors as an image of bytes.

    Args:
        content: Path of the file, or its bytes.
        frame: Number of the frame, from 0.
        most_pixels: A frame with more pixels is not decoded.

    Raises:
        NoLibraryError: pydicom is not installed.
        DecompressionBombError: The frame has too many pixels.
        ValueError: The pixels are no gray values and no colors of 8 bits.
        Exception: pydicom raises many types of errors about a damaged file.
    """
    data = _open(content)
    height, width = _header_of(data).size
    if height * width > most_pixels:
        raise Image.DecompressionBombError(f"{height * width} pixels")
    from pydicom.pixels.processing import apply_color_lut, apply_rescale
    from pydicom.pixels.utils import pixel_array

    pixels = pixel_array(_source(content), index=frame)  # colors become RGB
    kind = str(data.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)
        pixels = (pixels // 256).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise ValueError("colors have more than 8 bits a channel")
        return Image.fromarray(pixels[..., :3], "RGB")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"pixels are {kind}, neither gray values nor colors")
    rescale = _facts(data, frame, "PixelValueTransformationSequence", "RescaleSlope")
    values = apply_rescale(pixels, rescale)
    padding = data.get("PixelPaddingValue")
    is_deep = data.BitsStored > 8
    window = _window(_facts(data, frame, "FrameVOILUTSequence", "WindowCenter"))
    is_plain = not is_deep and pixels.dtype == np.uint8 and np.array_equal(values, pixels)
    if window is None and is_plain:
        window = 0.0, 2.0**data.BitsStored - 1
    counted = values if padding is None else values[pixels != padding]
    return Gray(values, window, kind == "MONOCHROME1", is_deep, counted)


def _open(content: str | bytes) -> Any:
    """Return all of a file but its pixels, which are read frame by frame."""
    if not is_installed("pydicom"):
        raise NoLibraryError
    import pydicom

    check_regular(content)
    try:
        return pydicom.dcmread(_source(content), stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError:
        raise ValueError("it does not begin as a DICOM file does") from None


def _source(content: str | bytes) -> str | io.BytesIO:
    return io.BytesIO(content) if isinstance(content, bytes) else content


def _header_of(data: Any) -> Header:
    if "Rows" not in data:
        raise ValueError("it holds no image")
    is_color = data.SamplesPerPixel > 1 or data.PhotometricInterpretation == "PALETTE COLOR"
    size = int(data.Rows), int(data.Columns)
    return Header(size, 3 if is_color else 1, int(data.get("NumberOfFrames") or 1))


def _facts(data: Any, frame: int, sequence: str, name: str) -> Any:
    """Return the table that holds a fact about a frame: the file itself, or in files of several frames a group of facts.

    Args:
        data: The file.
        frame: Number of the frame.
        sequence: Name of the group's table in newer files.
        name: Name of the fact; where a group has it, its table is returned.
    """
    groups = []
    if data.get("PerFrameFunctionalGroupsSequence"):
        groups.append(data.PerFrameFunctionalGroupsSequence[frame])
    if data.get("SharedFunctionalGroupsSequence"):
        groups.append(data.SharedFunctionalGroupsSequence[0])
    tables = [group.get(sequence)[0] for group in groups if group.get(sequence)]
    return next((table for table in tables if name in table), data)


def _window(facts: Any) -> Range | None:
    """Return the values that the first window shows as black and as white; None if there is no window."""
    center, width = (_first(facts.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or width <= 0:
        return None
    if facts.get("VOILUTFunction") == "LINEAR_EXACT":
        return center - width / 2, center + width / 2
    # C.11.2.1.2: a window of width 1 shows a single step.
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def _first(value: Any) -> float | None:
    """Return a number, or the first of several; None if there is none."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, str | int | float) else next(iter(value)))
