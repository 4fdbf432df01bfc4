"""Every model: the right output, both channel counts, its norm, seeded weights."""

import pytest
import torch
from torch import nn

from fedssl.data.shard import ImageSpec
from fedssl.errors import InputError
from fedssl.methods.supervised import Supervised
from fedssl.models.base import MODELS
from fedssl.models.cnn import CNN
from fedssl.networks import build_network

TABLE = [
    ("cnn", (1, 8, 8)),
    ("cnn", (3, 32, 32)),
    ("cnn", (1, 1, 1)),
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
    ("norm", "layer"), [("group", nn.GroupNorm), ("batch", nn.BatchNorm2d), ("none", nn.Identity)]
)
def test_norms(norm, layer):
    network = CNN(norm=norm).build((1, 8, 8), 10)
    assert sum(isinstance(module, layer) for module in network) == 2


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
