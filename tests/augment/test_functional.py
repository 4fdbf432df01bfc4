"""Every operation on pixels agrees with torchvision's functional version or with PIL's, image by image."""

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from PIL import ImageFilter

from fedssl.augment import functional as ops
from tests.augment.photos import LEVELS, as_bytes, assert_close, from_pil, photos, to_pil


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ops.brightness, reference.adjust_brightness),
        (ops.contrast, reference.adjust_contrast),
        (ops.sharpness, reference.adjust_sharpness),
        (ops.color, reference.adjust_saturation),
    ],
)
def test_blends_agree_with_torchvision(ours, theirs, channels):
    images = photos(channels)
    expected = torch.stack(
        [theirs(image, float(f)) for image, f in zip(images, LEVELS, strict=False)]
    )
    assert_close(ours(images, LEVELS), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_lookups_agree_with_torchvision(channels):
    images = photos(channels)
    levels = as_bytes(images)
    bits = torch.tensor([4.0, 5, 6, 7, 8, 4])
    expected = torch.stack(
        [reference.posterize(i, int(b)) for i, b in zip(levels, bits, strict=False)]
    )
    assert_close(ops.posterize(images, bits), expected.float() / 255)
    thresholds = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
    expected = torch.stack(
        [reference.solarize(i, float(t)) for i, t in zip(images, thresholds, strict=False)]
    )
    assert_close(ops.solarize(images, thresholds), expected)
    assert_close(ops.autocontrast(images), reference.autocontrast(images))
    assert_close(ops.equalize(images), reference.equalize(levels).float() / 255)
    assert_close(ops.invert(images), reference.invert(images))


def test_autocontrast_and_equalize_leave_flat_images_alone():
    flat = torch.full((2, 3, 8, 8), 0.4)
    assert torch.equal(ops.autocontrast(flat), flat)
    assert torch.allclose(ops.equalize(flat), flat)


def test_equalize_keeps_what_has_too_few_pixels_to_flatten():
    """Below 255 pixels outside the brightest level, PIL leaves a channel as it is."""
    image = photos(3, size=12)[:, :, :10, :10]
    assert torch.allclose(ops.equalize(image), image)
    assert torch.equal(as_bytes(ops.equalize(image)), reference.equalize(as_bytes(image)))


@pytest.mark.parametrize("channels", [1, 3])
def test_hue_agrees_with_torchvision(channels):
    images = photos(channels)
    images[0, :, :4, :4] = 0.5  # gray has no hue
    images[0, :, 4:8] = 0
    turns = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.37, 0.5])
    expected = torch.stack(
        [reference.adjust_hue(i, float(t)) for i, t in zip(images, turns, strict=True)]
    )
    assert_close(ops.hue(images, turns), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(ops.smooth, ImageFilter.SMOOTH), (ops.blur, ImageFilter.BLUR)]
)
def test_filters_agree_with_pil(ours, theirs, channels):
    images = photos(channels)
    expected = torch.stack([from_pil(to_pil(image).filter(theirs)) for image in images])
    assert_close(ours(images), expected)
    tiny = images[:, :, :2, :2]
    assert torch.equal(ours(tiny), tiny)


def test_cutout_covers_a_square_and_nothing_else():
    covered = ops.cutout_(
        torch.zeros(2, 1, 10, 10),
        torch.tensor([4.0, 4.0]),
        torch.tensor([5.0, 0.0]),
        torch.tensor([5.0, 0.0]),
    )
    assert int((covered[0] == 0.5).sum()) == 16
    assert int((covered[1] == 0.5).sum()) == 4  # three quarters lie outside
    assert int((covered == 0).sum()) == 200 - 20
