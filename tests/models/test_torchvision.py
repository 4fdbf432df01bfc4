"""Classifiers of torchvision by name: trunk, head and features of each sort, a round, and the least side of images."""

import pytest
import torch
from torch import nn

from fedssl.clients.client_app import app
from fedssl.core import rng
from fedssl.core.errors import InputError
from fedssl.data.shard import ImageSpec
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.methods.supervised import Supervised
from fedssl.models.base import MODELS, Classifier, as_classifier
from fedssl.server.app import serve
from fedssl.training.network import build_network
from tests.helpers import small_experiment

SHAPE = (3, 32, 32)
WIDTHS = {
    "resnet18": 512,
    "mobilenet_v3_small": 1024,
    "efficientnet_b0": 1280,
    "vit_b_16": 768,
    "squeezenet1_0": 512,
    "densenet121": 1024,
    "googlenet": 1024,
    "swin_t": 768,
}
"""Classifier -> width of its features; all of them take images of 32x32 pixels."""

LEAST = {"alexnet": 63, "inception_v3": 75}
"""Classifier -> least side in pixels of the images that it takes."""


@pytest.fixture(autouse=True)
def _seeded():
    with rng.seeded_torch(0):
        yield


def build(name, shape=SHAPE, **settings):
    return MODELS.build({"kind": f"torchvision:{name}", **settings}).build(shape, 7)


@pytest.mark.parametrize(("name", "width"), WIDTHS.items())
def test_a_split_changes_no_logit_and_gives_features(name, width):
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        whole = build(name).eval()
        expected = whole(images)
        classifier = as_classifier(whole, SHAPE)
        assert torch.equal(classifier(images), expected)
        features = classifier.features(images)
    assert isinstance(classifier, Classifier)
    assert not isinstance(classifier.head, nn.Identity)
    assert classifier.width == width
    assert features.shape == (2, width)
    assert expected.shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_a_round_trains_every_weight(name):
    """GroupNorm takes the place of batch normalization, which no batch of one image can train."""
    norm = {} if name.startswith("squeezenet") else {"norm": "group"}
    experiment = small_experiment(
        model={"kind": f"torchvision:{name}", "resize": 32, **norm},
        method={"kind": "fixmatch", "unlabeled_ratio": 1, "threshold": 0.0},
        federation={"sample": 1},
        train={"local_steps": 1},
        rounds=1,
    )
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [])
    assert outcome.rounds[-1].clients_ok == 1
    names = set(outcome.model.arrays)
    assert {name.partition(".")[0] for name in names} == {"trunk", "head"}


@pytest.mark.parametrize(("name", "side"), LEAST.items())
def test_images_that_are_too_small_are_refused_with_the_least_side(name, side):
    with pytest.raises(InputError, match=rf"model.kind: .*cannot take .*model\.resize to {side} "):
        build(name)


def test_the_least_side_is_enough():
    model = MODELS.build({"kind": "torchvision:alexnet", "resize": 63})
    spec = ImageSpec(SHAPE, 7, (0.5,) * 3, (0.5,) * 3, flips=False)
    network = build_network(model, Supervised(), spec, 0)
    assert network(torch.zeros(2, *SHAPE)).shape == (2, 7)
    with pytest.raises(InputError, match=r"model\.resize to 63 "):
        build("alexnet", resize=62)


@pytest.mark.parametrize("shape", [(3, 32, 48), (3, 40, 40)])
def test_a_transformer_wants_squares_of_whole_patches(shape):
    with pytest.raises(InputError, match=r"patches of 16x16; set model.resize to a multiple of 16"):
        build("vit_b_16", shape)
    assert as_classifier(build("vit_b_16", shape, resize=32), shape).width == 768


# how a module is split


def test_a_module_is_split_before_its_last_linear_layer():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    images = torch.randn(5, 1, 2, 2)
    expected = network(images)
    classifier = as_classifier(network, (1, 2, 2))
    assert torch.equal(classifier(images), expected)
    assert (classifier.width, classifier.features(images).shape) == (3, (5, 3))
    assert as_classifier(classifier, (1, 2, 2)) is classifier


def test_a_module_whose_last_linear_layer_is_not_its_output_is_a_trunk_without_a_head():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh())
    images = torch.randn(5, 1, 2, 2)
    expected = network(images)
    classifier = as_classifier(network, (1, 2, 2))
    assert isinstance(classifier.head, nn.Identity)
    assert classifier.width == 3
    assert torch.equal(classifier(images), expected)
    assert torch.equal(classifier.features(images), expected)


def test_splitting_leaves_modes_and_statistics_alone():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    as_classifier(network, (1, 2, 2))
    assert network.training
    assert network[1].num_batches_tracked == 0


def test_features_of_maps_are_means_over_their_pixels_and_take_one_pass():
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 2))
    classifier = Classifier(nn.Conv2d(1, 3, 1), head, width=3)
    images = torch.randn(5, 1, 4, 4)
    maps = classifier.trunk(images)
    torch.testing.assert_close(classifier.features(images), maps.mean((2, 3)))
    passes = []
    classifier.trunk.register_forward_hook(lambda *_: passes.append(1))
    logits, features = classifier.logits_and_features(images)
    assert len(passes) == 1
    assert torch.equal(logits, classifier(images))
    assert torch.equal(features, classifier.features(images))
