"""Helpers for tests of a user's own images: noise, files of noise, and the one error that refuses them."""

import numpy as np
import pytest
from PIL import Image

from fedssl.core.errors import InputError


def colors(count=1, side=8, seed=0):
    """Return noise, (count, side, side, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def save_classes(root):
    """Write a folder of ten good images in each of two classes, and return its images, shape (20, 3, 8, 8)."""
    images = [colors(10, seed=cls) for cls in range(2)]
    for name, part in zip(("cat", "dog"), images, strict=True):
        for i, pixels in enumerate(part):
            save(root / name / f"{i}.png", pixels)
    return np.concatenate(images).transpose(0, 3, 1, 2)


def refused(source, *said):
    """Check that a source is refused in one error that says all of this."""
    with pytest.raises(InputError) as caught:
        source.prepare()
    for text in said:
        assert text in str(caught.value)
    assert str(caught.value).count("set data.bad_images") == 1
    return str(caught.value)
