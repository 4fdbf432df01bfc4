"""Every feature skew maps bytes to bytes, is the client's own, is the same at every call, and has its effect."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from fedssl.core.errors import InputError
from fedssl.data.features import FEATURE_SKEWS

USES_NOISE = {"rotation": False, "noise": True, "color": False}
"""Of each kind, whether its images differ by more than their client."""

EVERY = [FEATURE_SKEWS.build(kind) for kind in USES_NOISE]


def seen(skew, images, law=0, noise=1):
    return skew.apply(
        images, law=np.random.default_rng(law), noise=torch.Generator().manual_seed(noise)
    )


def some_images(size, channels=3, height=12, width=10):
    pixels = np.random.default_rng(5).integers(0, 256, (size, channels, height, width), np.uint8)
    return torch.from_numpy(pixels)


def test_every_feature_skew_is_tested():
    assert set(USES_NOISE) == set(FEATURE_SKEWS.names())


@pytest.mark.parametrize("skew", EVERY, ids=lambda skew: skew.kind)
class TestEvery:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [0, 1, 7])
    def test_bytes_of_the_same_shape_and_the_input_untouched(self, skew, size, channels):
        images = some_images(size, channels)
        before = images.clone()
        after = seen(skew, images)
        assert after.dtype == torch.uint8
        assert after.shape == images.shape
        assert torch.equal(images, before)
        assert after.data_ptr() != images.data_ptr() or size == 0
        assert size == 0 or not torch.equal(after, images)

    def test_streams_decide_everything(self, skew):
        images = some_images(7)
        assert torch.equal(seen(skew, images), seen(skew, images))
        assert not torch.equal(seen(skew, images), seen(skew, images, law=2))
        same = torch.equal(seen(skew, images), seen(skew, images, noise=2))
        assert same != USES_NOISE[skew.kind]

    def test_global_streams_are_left_alone(self, skew):
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
        seen(skew, some_images(7))
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002

    def test_however_many_images_a_client_has_it_sees_the_first_ones_alike(self, skew):
        images = some_images(600, height=4, width=4)
        assert torch.equal(seen(skew, images)[:512], seen(skew, images[:512]))


def test_what_is_the_clients_own_is_alike_in_all_its_images():
    images = some_images(1).expand(600, -1, -1, -1)
    for skew in EVERY:
        after = seen(skew, images)
        alike = bool((after == after[:1]).all())
        assert alike != USES_NOISE[skew.kind]


@given(st.integers(0, 2**20), st.floats(1, 180))
@settings(max_examples=30, deadline=None)
def test_rotation_turns_by_the_clients_angle(seed, most):
    """A spot right of the center moves to where the angle says; positive is counter-clockwise."""
    angle = np.deg2rad(np.random.default_rng(seed).uniform(-most, most))
    images = torch.zeros(1, 1, 41, 41, dtype=torch.uint8)
    images[0, 0, 19:22, 32:35] = 255  # center (20, 33): 13 right of the image's, (20, 20)
    turned = seen(FEATURE_SKEWS.build({"kind": "rotation", "max_degrees": most}), images, law=seed)
    mass = turned[0, 0].double() / turned.sum()
    row = float((mass.sum(1) * torch.arange(41)).sum())
    column = float((mass.sum(0) * torch.arange(41)).sum())
    assert row == pytest.approx(20 - 13 * np.sin(angle), abs=0.1)
    assert column == pytest.approx(20 + 13 * np.cos(angle), abs=0.1)


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_rotation_is_torchvisions_bit_for_bit(seed, height, width):
    images = some_images(3, 3, height, width)
    angle = float(np.random.default_rng(seed).uniform(-180, 180))
    wanted = rotate(images, angle, InterpolationMode.BILINEAR)
    skew = FEATURE_SKEWS.build({"kind": "rotation", "max_degrees": 180})
    assert torch.equal(seen(skew, images, law=seed), wanted)


def test_rotation_interpolates_and_fills_with_black():
    white = torch.full((1, 1, 20, 20), 255, dtype=torch.uint8)
    turned = seen(FEATURE_SKEWS.build({"kind": "rotation", "max_degrees": 40}), white, law=4)
    levels = set(turned.unique().tolist())
    assert {0, 255} <= levels
    assert len(levels) > 2
    assert turned[0, 0, 10, 10] == 255


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_the_clients_deviation(seed):
    std = 255 * np.random.default_rng(seed).uniform(0, 0.1)
    gray = torch.full((600, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = seen(FEATURE_SKEWS.build("noise"), gray, law=seed).double()
    assert noisy.mean() == pytest.approx(128, abs=5 * std / noisy.numel() ** 0.5 + 1e-9)
    # Rounding to bytes adds 1/12; five deviations of a variance are 5 sqrt(2 / n).
    within = 5 * (2 / noisy.numel()) ** 0.5
    assert noisy.var() == pytest.approx(std**2 + 1 / 12, rel=within)
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0, 0], noisy[0, 1])


@pytest.mark.parametrize("level", [0, 255])
def test_noise_is_clipped_and_does_not_wrap_around(level):
    images = torch.full((4, 1, 32, 32), level, dtype=torch.uint8)
    noisy = seen(FEATURE_SKEWS.build({"kind": "noise", "max_std": 0.15}), images, law=0)
    assert (noisy == level).float().mean() > 0.4  # half of the noise leads out of range
    assert ((noisy.int() - level).abs() < 128).all()
    assert (noisy != level).any()


@given(st.integers(0, 2**20), st.floats(0.001, 0.999), st.sampled_from([1, 3]))
@settings(max_examples=50, deadline=None)
def test_color_multiplies_every_channel_by_its_gain(seed, strength, channels):
    ramp = torch.arange(256).to(torch.uint8).reshape(1, 1, 16, 16).expand(2, channels, 16, 16)
    cast = seen(FEATURE_SKEWS.build({"kind": "color", "strength": strength}), ramp, law=seed)
    gains = np.random.default_rng(seed).uniform(1 - strength, 1 + strength, channels)
    assert len(set(gains)) == channels
    wanted = np.clip(np.arange(256) * gains[:, None], 0, 255)
    for image in cast.numpy().reshape(2, channels, 256):
        assert np.abs(image - wanted).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("rotation", "max_degrees", 0),
        ("rotation", "max_degrees", 180.1),
        ("noise", "max_std", 0),
        ("noise", "max_std", 1.1),
        ("color", "strength", 0),
        ("color", "strength", 1),
        ("color", "strength", True),
        ("color", "gain", 0.5),
    ],
)
def test_what_is_refused(kind, field, value):
    with pytest.raises(InputError, match=rf"federation\.features\.{field}"):
        FEATURE_SKEWS.build({"kind": kind, field: value})


def test_there_is_no_default():
    with pytest.raises(InputError, match=r"federation\.features\.kind: is missing"):
        FEATURE_SKEWS.build({})
