"""Every model: the right output, both channel counts, its norm, and seeded weights."""

import pytest
import torch
from torch import nn

from fedssl.core.errors import InputError
from fedssl.data.shard import ImageSpec
from fedssl.methods.supervised import Supervised
from fedssl.models.base import MODELS
from fedssl.models.cnn import CNN
from fedssl.models.static_norm import StaticBatchNorm
from fedssl.training.network import build_network

TABLE = [
    ("cnn", (1, 8, 8)),
    ("cnn", (3, 32, 32)),
    ("cnn", (1, 1, 1)),
    ("wrn", (3, 32, 32)),
    ({"kind": "convnet13", "width": 16}, (3, 32, 32)),
    ({"kind": "resnet8", "width": 16}, (3, 32, 32)),
    ({"kind": "resnet9", "width": 16}, (3, 28, 28)),
    ({"kind": "resnet18", "width": 16}, (1, 28, 28)),
    ("torchvision:resnet18", (1, 8, 8)),
    ("torchvision:mobilenet_v3_small", (3, 32, 32)),
    ("torchvision:efficientnet_b0", (3, 32, 32)),
]


def spec(shape):
    return ImageSpec(shape, 7, (0.5,) * shape[0], (0.5,) * shape[0], flips=False)


@pytest.mark.parametrize(("kind", "shape"), TABLE)
def test_logits_of_the_right_shape(kind, shape):
    network = build_network(MODELS.build(kind), Supervised(), spec(shape), 0)
    assert network(torch.zeros(3, *shape)).shape == (3, 7)
    assert network.training


def test_the_seed_decides_the_weights_and_nothing_else():
    first, second, other = (
        build_network(CNN(), Supervised(), spec((1, 8, 8)), s) for s in (0, 0, 1)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=False)
    )
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize(
    ("norm", "layer"),
    [
        ("group", nn.GroupNorm),
        ("batch", nn.BatchNorm2d),
        ("static", StaticBatchNorm),
        ("none", nn.Identity),
    ],
)
def test_norms(norm, layer):
    network = CNN(norm=norm).build((1, 8, 8), 10)
    assert sum(isinstance(module, layer) for module in network.trunk) == 2


def test_group_norm_is_the_default():
    assert CNN().norm == "group"


def test_the_benchmarks_network_has_the_size_it_should():
    """conv16-conv32-fc64: 14k weights on 8x8 gray images, 105k on 28x28."""
    model = CNN(widths=(16, 32), hidden=64, norm="none")
    sizes = [sum(p.numel() for p in model.build((1, s, s), 10).parameters()) for s in (8, 28)]
    assert sizes == [13_706, 105_866]


def test_torchvision_takes_larger_images_on_request():
    small = MODELS.build({"kind": "torchvision:alexnet", "resize": 64})
    assert build_network(small, Supervised(), spec((1, 8, 8)), 0)(
        torch.zeros(2, 1, 8, 8)
    ).shape == (2, 7)
    with pytest.raises(
        InputError,
        match=r"model.kind: torchvision:alexnet cannot take images of .* set model.resize",
    ):
        build_network(MODELS.build("torchvision:alexnet"), Supervised(), spec((1, 8, 8)), 0)


def test_a_transformer_with_a_fixed_size_is_refused_in_words():
    with pytest.raises(InputError, match=r"set model\.resize"):
        build_network(MODELS.build("torchvision:vit_b_32"), Supervised(), spec((1, 8, 8)), 0)


def test_unknown_torchvision_classifier():
    with pytest.raises(InputError, match=r"no classifier 'resnet81'; did you mean 'resnet1\d*'"):
        MODELS.build("torchvision:resnet81").build((1, 8, 8), 10)


def convolutions(network):
    return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_torchvisions_batch_norms_give_way_and_the_weights_stay(name):
    plain, grouped = (
        build_network(
            MODELS.build({"kind": f"torchvision:{name}", **norm}),
            Supervised(),
            spec((3, 32, 32)),
            0,
        )
        for norm in ({}, {"norm": "group", "groups": 32})
    )
    replaced = [module for module in grouped.modules() if isinstance(module, nn.GroupNorm)]
    kept = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in grouped.modules())
    assert [norm.num_channels for norm in replaced] == [norm.num_features for norm in kept]
    assert all(norm.num_groups <= 32 for norm in replaced)
    assert any(norm.num_groups > 8 for norm in replaced)
    logits = grouped(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    for a, b in zip(convolutions(plain), convolutions(grouped), strict=True):
        assert torch.equal(a, b)


def test_groups_divide_torchvisions_channels():
    """mobilenet_v3_small has layers of 72 and 88 channels, which 16 does not divide; 12 and 11 do."""
    network = MODELS.build(
        {"kind": "torchvision:mobilenet_v3_small", "norm": "group", "groups": 16}
    ).build((3, 32, 32), 7)
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    groups = {norm.num_channels: norm.num_groups for norm in norms}
    assert (groups[16], groups[72], groups[88]) == (16, 12, 11)


def test_torchvisions_norm_can_be_static():
    network = MODELS.build({"kind": "torchvision:resnet18", "norm": "static"}).build((3, 32, 32), 7)
    assert sum(isinstance(module, StaticBatchNorm) for module in network.modules()) == 20
    # A single image, down to one pixel in the last blocks: torch's own batch normalization refuses it.
    assert network(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_no_batch_norm_to_replace_is_said():
    with pytest.raises(InputError, match=r"model.norm: .*squeezenet1_1 has no batch normalization"):
        MODELS.build({"kind": "torchvision:squeezenet1_1", "norm": "group"}).build((3, 32, 32), 7)
