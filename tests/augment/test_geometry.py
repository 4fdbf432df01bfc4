"""Warps and resampling agree with torchvision's and PIL's; shifts are crops of the reflected image."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as reference
from PIL import Image
from torchvision.transforms import InterpolationMode

from fedssl.augment import geometry
from tests.augment.photos import assert_close, from_pil, photos, to_pil


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
            geometry.affine_matrices(degrees=degrees),
            lambda i: reference.rotate(images[i], float(degrees[i]), interpolation=interpolation),
        ),
        "shear_x": (
            geometry.affine_matrices(shear_x=shear),
            lambda i: expected(shear=[angle(i), 0.0])(i),
        ),
        "shear_y": (
            geometry.affine_matrices(shear_y=shear),
            lambda i: expected(shear=[0.0, angle(i)])(i),
        ),
        "translate_x": (
            geometry.affine_matrices(shift_x=shift),
            lambda i: expected(translate=[int(shift[i]), 0])(i),
        ),
        "translate_y": (
            geometry.affine_matrices(shift_y=shift),
            lambda i: expected(translate=[0, int(shift[i])])(i),
        ),
    }
    for name, (matrices, theirs) in cases.items():
        ours = geometry.warp(images, matrices, mode)
        agree = torch.stack([theirs(i) for i in range(len(images))])
        assert_close(ours, agree, name)


def test_shifts_are_crops_of_the_reflected_image():
    images = photos(3, size=8)
    mirrored = torch.tensor([True, False, True, False, True, False])
    right, down = torch.tensor([-2, -1, 0, 1, 2, 0]), torch.tensor([0, 2, 0, -2, 1, -1])
    shifted = geometry.flip_and_shift(images, mirrored, right, down)
    for i in range(len(images)):
        given = images[i : i + 1].flip(3) if mirrored[i] else images[i : i + 1]
        padded = F.pad(given, [2] * 4, mode="reflect")[0]
        x, y = 2 - int(right[i]), 2 - int(down[i])
        assert torch.equal(shifted[i], padded[:, y : y + 8, x : x + 8])


def test_shifts_beyond_the_image_reflect_again():
    row = torch.tensor([1, 2, 3]).view(1, 1, 1, 3).expand(6, 1, 1, 3)
    right, still = torch.tensor([0, 1, 2, 3, 4, -5]), torch.zeros(6, dtype=torch.long)
    shifted = geometry.flip_and_shift(row, torch.zeros(6, dtype=torch.bool), right, right)
    expected = [[1, 2, 3], [2, 1, 2], [3, 2, 1], [2, 3, 2], [1, 2, 3], [2, 3, 2]]
    assert shifted[:, 0, 0].tolist() == expected
    dot = torch.rand(6, 1, 1, 1)
    assert torch.equal(geometry.flip_and_shift(dot, still > 0, right, right), dot)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", geometry.FILTERS)
def test_rescale_agrees_with_pil(name, channels):
    images = photos(channels)
    shares = torch.tensor([0.5, 0.6, 0.75, 0.9, 0.99, 1.0])
    method = torch.full((6,), geometry.FILTERS.index(name))
    expected = []
    for image, share in zip(images, shares, strict=True):
        margin = 16 * (1 - float(share))
        box = (margin, margin, 32 - margin, 32 - margin)
        resampling = Image.Resampling[name.upper()]
        expected.append(from_pil(to_pil(image).resize((32, 32), resampling, box)))
    assert_close(geometry.rescale(images, shares, method), torch.stack(expected))
