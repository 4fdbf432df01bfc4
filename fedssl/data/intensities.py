"""Turns gray values of any depth, such as 16 bits or the Hounsfield units of a CT scan, into bytes by one rule."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Range = tuple[float, float]
"""The values that become 0 and 255."""

Values = npt.NDArray[Any]

SCALED = {
    "range": "the range data.intensities became 0 to 255",
    "window": "each image's own window became 0 to 255 (data.intensities sets one range for all)",
    "least": "the least to the greatest value of each image became 0 to 255 "
    "(data.intensities sets one range for all)",
}
"""How images of more than 8 bits became bytes, by the rule."""

Rule = Literal["range", "window", "least"]
"""Where a range comes from: the setting, the image's window, or the image's least and greatest value."""


def choose_range(
    values: Values, setting: Range | None, window: Range | None = None
) -> tuple[Range, Rule]:
    """Return the range of values that become 0 to 255, and where it comes from.

    The range is that of the setting; if there is none, that of the image's window; if there is none, the least to the greatest value.

    Args:
        values: The image's values, of any shape; NaN and infinity do not count.
        setting: What the user sets for all images, ``data.intensities``; None if nothing is set.
        window: What the image says about itself; None if it says nothing.

    Raises:
        ValueError: The range would be that of the values, and none of them is finite.
    """
    if setting is not None:
        return setting, "range"
    if window is not None:
        return window, "window"
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise ValueError("no value is a finite number")
    return (float(finite.min()), float(finite.max())), "least"


def to_bytes(values: Values, limits: Range, *, inverted: bool = False) -> npt.NDArray[np.uint8]:
    """Return values as bytes: the range becomes 0 to 255, values beyond it become 0 or 255, NaN becomes 0.

    Args:
        values: Values of any shape.
        limits: The least and the greatest value of the range. If they are equal, greater values become 255 and all others 0.
        inverted: Whether the least value is the brightest one.
    """
    low, high = limits
    known = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    shares = np.clip((known - low) / (high - low), 0, 1) if high > low else known > high
    return np.rint((1.0 - shares if inverted else shares) * 255.0).astype(np.uint8)
