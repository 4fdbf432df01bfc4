"""The published architectures: sizes, heads, images from one pixel to 32x32, and refused images."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedssl.core import rng
from fedssl.core.errors import InputError
from fedssl.models.base import MODELS, norm_layer
from fedssl.models.group_norm import GroupNorm
from fedssl.models.static_norm import StaticBatchNorm
from fedssl.models.wrn import WRN

SMALL = {
    "convnet13": {"width": 8},
    "resnet8": {"width": 8},
    "resnet9": {"width": 8},
    "resnet18": {"width": 8},
    "wrn": {"depth": 10, "width": 1},
}
ALL = sorted(SMALL)
NORMS = ("group", "batch", "static", "none")


@pytest.fixture(autouse=True)
def _seeded():
    with rng.seeded_torch(0):
        yield


def build(kind, shape, **settings):
    return MODELS.build({"kind": kind, **SMALL[kind], **settings}).build(shape, 5)


def size(kind, **settings):
    with torch.device("meta"):
        network = MODELS.build({"kind": kind, **settings}).build((3, 32, 32), 10)
    return sum(parameter.numel() for parameter in network.parameters())


def conv(channels, out, side=3):
    """Weights of a convolution without bias and of the scale and shift of `out` channels after it."""
    return channels * out * side**2 + 2 * out


def linear(features):
    return features * 10 + 10


def test_wrn_28_2_has_1_47_million_weights():
    """Pre-activation: block n+1 normalizes what block n put out, so scales and shifts are counted by input."""

    def block(channels, out):
        shortcut = channels * out if channels != out else 0
        return 2 * channels + 9 * channels * out + 2 * out + 9 * out * out + shortcut

    groups = sum(
        block(before, out) + 3 * block(out, out) for before, out in ((16, 32), (32, 64), (64, 128))
    )
    expected = 3 * 16 * 9 + groups + 2 * 128 + linear(128)
    assert size("wrn", norm="batch") == expected == 1_467_610


def test_convnet13_has_3_12_million_weights():
    first = conv(3, 128) + 2 * conv(128, 128)
    second = conv(128, 256) + 2 * conv(256, 256)
    third = conv(256, 512) + conv(512, 256, 1) + conv(256, 128, 1)
    assert size("convnet13", norm="batch") == first + second + third + linear(128) == 3_121_802


def test_resnet8_has_1_23_million_weights():
    """The code of SAGE has the same number: ResNet(resnet_size=8, scaling=4)."""
    first = conv(3, 64) + 2 * conv(64, 64)
    second = conv(64, 128) + conv(128, 128) + conv(64, 128, 1)
    third = conv(128, 256) + conv(256, 256) + conv(128, 256, 1)
    assert size("resnet8", norm="batch") == first + second + third + linear(256) == 1_227_594


def test_resnet9_has_6_57_million_weights():
    straight = conv(3, 64) + conv(64, 128) + conv(128, 256) + conv(256, 512)
    residual = 2 * conv(128, 128) + 2 * conv(512, 512)
    assert size("resnet9", norm="batch") == straight + residual + linear(512) == 6_573_130


def test_resnet18_has_11_17_million_weights():
    def pair(channels, out):
        shortcut = conv(channels, out, 1) if channels != out else 0
        return conv(channels, out) + 3 * conv(out, out) + shortcut

    pairs = pair(64, 64) + pair(64, 128) + pair(128, 256) + pair(256, 512)
    assert size("resnet18", norm="batch") == conv(3, 64) + pairs + linear(512) == 11_173_962


@pytest.mark.parametrize("kind", ALL)
def test_without_normalization_every_layer_has_a_bias_in_its_stead(kind):
    assert all(
        module.bias is not None
        for module in build(kind, (1, 8, 8), norm="none").modules()
        if isinstance(module, nn.Conv2d)
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 5, 9), (3, 32, 32)])
def test_images_of_every_size_train(kind, norm, shape):
    network = build(kind, shape, norm=norm)
    logits = network(torch.randn(2, *shape))
    assert logits.shape == (2, 5)
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("kind", ALL)
def test_the_last_linear_layer_is_the_head(kind):
    network = build(kind, (3, 8, 8)).eval()
    heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
    outputs = []
    heads[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    assert network(torch.randn(2, 3, 8, 8)) is outputs[0]


@pytest.mark.parametrize("kind", ALL)
def test_convolutions_start_he_normal(kind):
    """A weight's deviation is sqrt(2 / fan_out); 2 % is more than four deviations of 30,000 draws' own."""
    network = MODELS.build({"kind": kind}).build((3, 8, 8), 5)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 3e4]
    assert layers
    for layer in layers:
        fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_a_wide_block_whose_last_convolution_is_zero_is_the_identity(norm):
    network = WRN(depth=10, width=1, norm=norm).build((3, 8, 8), 5)
    block = network.trunk[1]
    nn.init.zeros_(block.residual[-1].weight)
    images = torch.randn(2, 16, 8, 8)
    before = images.clone()
    assert torch.equal(block(images), before)
    assert torch.equal(images, before)


def test_a_wide_block_that_changes_channels_passes_the_activated_input_on():
    network = WRN(depth=10, width=2, norm="group").build((3, 8, 8), 5)
    block = network.trunk[1]
    nn.init.zeros_(block.residual[-1].weight)
    images = torch.randn(2, 16, 8, 8)
    activated = F.leaky_relu(F.group_norm(images, 8), 0.1)
    torch.testing.assert_close(block(images), F.conv2d(activated, block.shortcut.weight))


@pytest.mark.parametrize(
    ("kind", "channels", "side"),
    [
        ("convnet13", 8, 6),
        ("resnet8", 32, 8),
        ("resnet9", 64, 4),
        ("resnet18", 64, 4),
        ("wrn", 64, 8),
    ],
)
def test_a_32x32_image_ends_as_small_as_in_the_papers(kind, channels, side):
    """Convnet13: 32, 16, 8 and 6 by the convolution without padding."""
    network = build(kind, (3, 32, 32))
    pools = [m for m in network.trunk if isinstance(m, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)]
    seen = []
    pools[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    network(torch.randn(2, 3, 32, 32))
    assert seen == [(2, channels, side, side)]


@pytest.mark.parametrize("kind", ["convnet13", "wrn"])
def test_dropout_acts_in_training_only(kind):
    network = build(kind, (1, 8, 8), dropout=0.5)
    images = torch.randn(2, 1, 8, 8)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("depth", [11, 26, 29])
def test_a_depth_that_no_wide_network_has_is_refused(depth):
    with pytest.raises(InputError, match=rf"model: a depth of {depth} is not 6n \+ 4"):
        MODELS.build({"kind": "wrn", "depth": depth})


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({"kind": "cnn", "widths": [8, 12]}, 12),
        ({"kind": "convnet13", "width": 6}, 12),
        ({"kind": "resnet8", "width": 6}, 12),
        ({"kind": "resnet9", "width": 6}, 12),
        ({"kind": "resnet18", "width": 6}, 12),
        ({"kind": "wrn", "width": 1, "groups": 24}, 32),
    ],
)
def test_groups_that_do_not_divide_a_width_are_refused_before_anything_is_built(settings, width):
    with pytest.raises(InputError, match=rf"model: a width of {width} is not divisible into"):
        MODELS.build(settings)
    MODELS.build(settings | {"norm": "batch"})


def test_norm_layers():
    layers = [norm_layer(norm, 12, groups=4) for norm in NORMS]
    kinds = [GroupNorm, nn.BatchNorm2d, StaticBatchNorm, nn.Identity]
    assert [type(layer) for layer in layers] == kinds
    assert norm_layer("group", 4, groups=8).num_groups == 4
