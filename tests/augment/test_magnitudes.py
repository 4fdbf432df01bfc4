"""At each level, a policy does what its paper's table says; the expected image is made by torchvision and PIL."""

import math
from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode

from fedssl.augment import ctaugment, randaugment
from fedssl.augment.ctaugment import CTAugment
from fedssl.augment.randaugment import RandAugment
from tests.augment.photos import as_bytes, assert_close, from_pil, photos, to_pil

LEVELS = torch.tensor([0.0, 0.11, 0.3, 0.5, 0.77, 0.99])
Reference = Callable[[Tensor, float], Tensor]


def on_bytes(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda image, *args: function(as_bytes(image), *args).float() / 255


def mixed(function: Callable[[Tensor], Tensor]) -> Reference:
    return lambda image, level: image + level * (function(image) - image)


def filtered(kernel: type[ImageFilter.Filter]) -> Reference:
    return mixed(lambda image: from_pil(to_pil(image).filter(kernel)))


def moved(angle: float = 0, x: float = 0, y: float = 0, shear: tuple[float, float] = (0, 0)):
    degrees = [math.degrees(math.atan(tangent)) for tangent in shear]
    return lambda image: reference.affine(
        image, -angle, [x, y], 1.0, degrees, interpolation=InterpolationMode.BILINEAR
    )


def affine(degrees: float) -> dict[str, Reference]:
    """Shifts of up to .3 of 32 pixels, tested where they are whole, as torchvision's are."""
    return {
        "rotate": lambda image, level: moved(degrees * (2 * level - 1))(image),
        "shear_x": lambda image, level: moved(shear=(0.3 * (2 * level - 1), 0))(image),
        "shear_y": lambda image, level: moved(shear=(0, 0.3 * (2 * level - 1)))(image),
        "translate_x": lambda image, level: moved(x=round(9.6 * (2 * level - 1)))(image),
        "translate_y": lambda image, level: moved(y=round(9.6 * (2 * level - 1)))(image),
    }


def enhanced(low: float, width: float) -> dict[str, Reference]:
    functions = {
        "brightness": reference.adjust_brightness,
        "color": reference.adjust_saturation,
        "contrast": reference.adjust_contrast,
        "sharpness": reference.adjust_sharpness,
    }
    return {
        name: lambda image, level, f=function: f(image, low + width * level)
        for name, function in functions.items()
    }


def same(image: Tensor, level: float) -> Tensor:
    return image


def rescaled(image: Tensor, level: float) -> Tensor:
    margin = 16 * 0.5 * level
    box = (margin, margin, 32 - margin, 32 - margin)
    return from_pil(to_pil(image).resize((32, 32), Image.Resampling.BILINEAR, box))


RANDAUGMENT: dict[str, Reference] = {
    "identity": same,
    "autocontrast": lambda image, level: reference.autocontrast(image),
    "equalize": lambda image, level: on_bytes(reference.equalize)(image),
    "posterize": lambda image, level: on_bytes(reference.posterize)(image, 4 + int(5 * level)),
    "solarize": lambda image, level: reference.solarize(image, level),
    **enhanced(0.05, 0.9),
    **affine(30),
}
"""FixMatch (arXiv:2001.07685), Table 12."""

CTAUGMENT: dict[str, Reference] = {
    "identity": same,
    "autocontrast": mixed(reference.autocontrast),
    "blur": filtered(ImageFilter.BLUR),
    "equalize": mixed(on_bytes(reference.equalize)),
    "invert": mixed(reference.invert),
    "posterize": lambda image, level: on_bytes(reference.posterize)(image, 1 + int(8 * level)),
    "rescale": rescaled,
    "smooth": filtered(ImageFilter.SMOOTH),
    "solarize": lambda image, level: reference.solarize(image, level),
    **enhanced(0.1, 1.9),
    **affine(45),
}
"""FixMatch, Table 13, with the factors of its code; cutout, whose place is random, is tested apart."""


def whole_shifts(name: str) -> Tensor:
    """Levels at which shifts of up to 9.6 pixels are whole ones."""
    shifts = torch.tensor([-9.0, -4, -1, 0, 5, 9])
    return (shifts / 9.6 + 1) / 2 if name.startswith("translate") else LEVELS


def expected(table: dict[str, Reference], name: str, images: Tensor) -> Tensor:
    levels = whole_shifts(name).tolist()
    return torch.stack([table[name](i, level) for i, level in zip(images, levels, strict=True)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_randaugment_follows_its_table(name, channels):
    images = photos(channels)
    chosen = torch.full((6,), randaugment.OPERATIONS.index(name))
    views = RandAugment()._apply_(images.clone(), chosen, whole_shifts(name).unsqueeze(1))
    assert_close(views, expected(RANDAUGMENT, name, images))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CTAUGMENT)
def test_ctaugment_follows_its_table(name, channels):
    images = photos(channels)
    chosen = torch.full((6,), ctaugment.OPERATIONS.index(name))
    third = torch.full((6,), 2.5 / 6)  # the third of six filters: bilinear
    levels = torch.stack([whole_shifts(name), third, third, third], dim=1)
    views = CTAugment()._apply_(images.clone(), chosen, levels)
    assert_close(views, expected(CTAUGMENT, name, images))


def test_cutout_grows_to_half_the_side_at_its_place():
    chosen = torch.full((3,), ctaugment.OPERATIONS.index("cutout"))
    levels = torch.tensor([[0.0, 0, 0.5, 0.5], [0.5, 0, 0.5, 0.5], [1.0, 0, 0.25, 0.75]])
    views = CTAugment()._apply_(torch.zeros(3, 1, 32, 32), chosen, levels)
    assert [int((view == 0.5).sum()) for view in views] == [0, 64, 256]
    assert (views[2, 0, 16:, :16] == 0.5).all()


def test_the_tables_are_complete():
    assert set(randaugment.OPERATIONS) == set(RANDAUGMENT)
    assert set(ctaugment.OPERATIONS) == {*CTAUGMENT, "cutout"}
    assert len(randaugment.OPERATIONS) == 14
    assert len(ctaugment.OPERATIONS) == 19
