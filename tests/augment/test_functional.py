"""Every operation agrees with torchvision's functional one, image by image."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torch import Tensor
from torchvision.transforms import InterpolationMode

from fedssl.augment import functional as ops


def photos(channels: int, size: int = 32, count: int = 6) -> Tensor:
    """Return smooth random images in whole 1/255 steps, so that both sides see the same bytes."""
    generator = torch.Generator().manual_seed(channels * 100 + size)
    coarse = torch.rand(count, channels, size // 4, size // 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """At least 99 % of the pixels are within 2/255."""
    agree = ((ours - theirs).abs() <= 2.001 / 255).float().mean()
    assert agree >= 0.99, f"{agree:.4f} of the pixels agree"


def as_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


LEVELS = torch.tensor([0.05, 0.3, 0.5, 0.8, 1.0, 1.9])


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


def test_autocontrast_and_equalize_leave_flat_images_alone():
    flat = torch.full((2, 3, 8, 8), 0.4)
    assert torch.equal(ops.autocontrast(flat), flat)
    assert torch.allclose(ops.equalize(flat), flat)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "interpolation"),
    [("bilinear", InterpolationMode.BILINEAR), ("nearest", InterpolationMode.NEAREST)],
)
def test_affine_operations_agree_with_torchvision(channels, mode, interpolation):
    images = photos(channels)
    degrees = torch.tensor([-30.0, -7, 0, 3, 12, 29])
    shear = torch.tensor([-0.3, -0.1, 0.0, 0.05, 0.2, 0.3])
    shift = torch.tensor([-9.0, -3, 0, 1, 4, 9])

    def expected(**kwargs):
        whole = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | kwargs
        return lambda i: reference.affine(images[i], interpolation=interpolation, **whole)

    def angle(i: int) -> float:
        return math.degrees(math.atan(float(shear[i])))

    cases = {
        "rotate": (
            ops.affine_matrices(degrees=degrees),
            lambda i: reference.rotate(images[i], float(degrees[i]), interpolation=interpolation),
        ),
        "shear_x": (
            ops.affine_matrices(shear_x=shear),
            lambda i: expected(shear=[angle(i), 0.0])(i),
        ),
        "shear_y": (
            ops.affine_matrices(shear_y=shear),
            lambda i: expected(shear=[0.0, angle(i)])(i),
        ),
        "translate_x": (
            ops.affine_matrices(shift_x=shift),
            lambda i: expected(translate=[int(shift[i]), 0])(i),
        ),
        "translate_y": (
            ops.affine_matrices(shift_y=shift),
            lambda i: expected(translate=[0, int(shift[i])])(i),
        ),
    }
    for name, (matrices, theirs) in cases.items():
        ours = ops.warp(images, matrices, mode)
        agree = torch.stack([theirs(i) for i in range(len(images))])
        close = ((ours - agree).abs() <= 2.001 / 255).float().mean()
        assert close >= 0.99, f"{name}: {close:.4f} of the pixels agree"


def test_shift_by_pixels_is_a_crop_of_the_reflected_image():
    images = photos(3, size=8)
    right, down = torch.tensor([-2, -1, 0, 1, 2, 0]), torch.tensor([0, 2, 0, -2, 1, -1])
    shifted = ops.shift_by_pixels(images, right, down, padding=2)
    for i in range(len(images)):
        padded = torch.nn.functional.pad(images[i : i + 1], [2] * 4, mode="reflect")[0]
        x, y = 2 - int(right[i]), 2 - int(down[i])
        assert torch.equal(shifted[i], padded[:, y : y + 8, x : x + 8])


def test_cutout_covers_a_square_and_nothing_else():
    images = torch.zeros(2, 1, 10, 10)
    covered = ops.cutout(
        images, torch.tensor([4.0, 4.0]), torch.tensor([5.0, 0.0]), torch.tensor([5.0, 0.0])
    )
    assert int((covered[0] == 0.5).sum()) == 16
    assert int((covered[1] == 0.5).sum()) == 4  # three quarters lie outside
    assert not images.any()
