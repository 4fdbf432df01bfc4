"""What a method of one's own may do with networks in a team: the gradients of one process, or an error that says what fails."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from fedssl.core.slots import Slot
from fedssl.methods.functional import call_with
from fedssl.methods.supervised import Supervised
from fedssl.models.base import Classifier
from fedssl.training.team import backward, current_team, gradients, sharing_rows
from tests.team import results_of
from tests.training.test_team import trained

IMAGES = torch.rand(7, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def classifier(*layers, features=12):
    """Return a network in double precision with some layers in its trunk, the same each time."""
    torch.manual_seed(0)
    layers = layers or (nn.BatchNorm2d(3),)
    trunk = nn.Sequential(nn.Conv2d(2, 3, 3), *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Classifier(trunk, nn.Linear(features, 4), features).double()


def gradient_of(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def assert_as_alone(function, size=3):
    """Compare what each process of a team returns with what one process does."""
    (alone,) = results_of(1, function)
    for own in results_of(size, function):
        for name, tensor in alone.items():
            torch.testing.assert_close(own[name], tensor, rtol=1e-12, atol=1e-12)


def test_a_copy_of_a_network_has_the_gradients_of_the_whole_batch():
    def run():
        network = classifier()
        with sharing_rows(current_team(), [network]):
            twin = copy.deepcopy(network)
            twin(IMAGES).square().mean().backward()
        return {"gradient": gradient_of(twin)}

    assert_as_alone(run)


def test_other_weights_in_a_network_have_the_gradients_of_the_whole_batch():
    """Weights of one's own, and weights after a step in the graph, through which the first ones learn as well."""

    def run():
        network = classifier()
        with sharing_rows(current_team(), [network]):
            first = {
                name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()
            }
            moved = {name: 2 * weight for name, weight in first.items()}
            loss = call_with(network, first, IMAGES).square().mean()
            loss = loss + call_with(network, moved, IMAGES).square().mean()
            found = torch.autograd.grad(loss, list(first.values()))
        return dict(zip(first, found, strict=True))

    assert_as_alone(run)


@pytest.mark.parametrize("how", ["all at once", "asked for", "one by one"])
def test_every_way_to_a_gradient_is_that_of_the_whole_batch(how):
    """Also for weights that no optimizer of the step moves, and for gradients that were there before."""

    def run():
        network = classifier()
        with sharing_rows(current_team(), [network]):
            for _ in range(2):
                loss = network(IMAGES).square().mean()
                if how == "all at once":
                    backward(loss)
                elif how == "asked for":
                    found = gradients(loss, list(network.parameters()))
                    for parameter, gradient in zip(network.parameters(), found, strict=True):
                        parameter.grad = gradient
                else:
                    loss.backward()
        return {"gradient": gradient_of(network)}

    assert_as_alone(run)


def test_a_second_derivative_is_refused():
    def run():
        network = classifier()
        weights = list(network.parameters())
        with sharing_rows(current_team(), [network]):
            loss = network(IMAGES).square().mean()
            with pytest.raises(RuntimeError, match="no gradients of gradients"):
                torch.autograd.grad(loss, weights, create_graph=True)
        return {}

    results_of(2, run)


@pytest.mark.parametrize("layer", [nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.RReLU()])
def test_a_layer_that_cannot_be_divided_is_named(layer):
    def run():
        with (
            pytest.raises(RuntimeError, match=rf"the layer 1 \({type(layer).__name__}\)"),
            sharing_rows(current_team(), [classifier(layer)]),
        ):
            pass
        return {}

    results_of(2, run)


def test_batch_normalization_of_vectors_is_refused_in_a_trunk_and_free_in_a_head():
    def run():
        flat = (nn.Flatten(), nn.BatchNorm1d(48), nn.Unflatten(1, (3, 4, 4)))
        with (
            pytest.raises(RuntimeError, match=r"\(BatchNorm1d\)"),
            sharing_rows(current_team(), [classifier(*flat)]),
        ):
            pass
        return {}

    results_of(2, run)

    def with_head():
        network = classifier()
        network.head = nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 4)).double()
        with sharing_rows(current_team(), [network]):
            network(IMAGES).square().mean().backward()
        return {"gradient": gradient_of(network)}

    assert_as_alone(with_head)


def test_dropout_of_something_else_than_images_is_refused():
    def run():
        layers = (nn.Flatten(0, 1), nn.Dropout(0.1), nn.Unflatten(0, (-1, 3)))
        network = classifier(*layers)
        with (
            sharing_rows(current_team(), [network]),
            pytest.raises(RuntimeError, match="its first dimension is"),
        ):
            network(IMAGES)
        return {}

    results_of(2, run)


@pytest.mark.parametrize("is_training", [True, False])
def test_statistics_that_are_not_tracked_are_those_of_the_whole_batch(is_training):
    def run():
        network = classifier(nn.BatchNorm2d(3, track_running_stats=False)).train(is_training)
        with sharing_rows(current_team(), [network]):
            network(IMAGES).square().mean().backward()
        return {"gradient": gradient_of(network)}

    assert_as_alone(run)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_statistics_are_summed_in_single_precision(half):
    """The squares of 128 images of 32x32 pixels overflow float16."""

    def run():
        torch.manual_seed(0)
        layer = nn.BatchNorm2d(4)
        trunk = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        network = Classifier(trunk, nn.Linear(4, 2), 4)
        images = 4 * torch.rand(128, 1, 32, 32, generator=torch.Generator().manual_seed(1))
        with sharing_rows(current_team(), [network]), torch.autocast("cpu", half):
            network(images)
        return {"mean": layer.running_mean, "variance": layer.running_var}

    (alone,), (own, _) = results_of(1, run), results_of(2, run)
    for name, tensor in alone.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-2, atol=1e-3)


class KeepsItsRank(Supervised):
    """A method whose client keeps another number on each process of its team."""

    def slots(self):
        return (Slot("kept", "client"),)

    def init_slot(self, name, fresh):
        return {"rank": torch.zeros(1)}

    def end(self, learner):
        learner.state["kept"]["rank"] += current_team().rank


def test_processes_that_keep_different_state_are_told():
    """The weights of the network agree, but something that the client keeps does not."""

    def run():
        with pytest.raises(RuntimeError, match="same weights and the same state"):
            trained(KeepsItsRank(), dtype=torch.float32)
        return {}

    results_of(2, run)


def test_weights_that_were_used_once_are_freed_at_once():
    """A method that makes new weights in every step must not wait for the garbage collector."""

    def run():
        network = classifier()
        gc.disable()
        with sharing_rows(current_team(), [network]):
            moved = {name: 2 * p for name, p in network.named_parameters()}
            call_with(network, moved, IMAGES).square().mean().backward()
            watched = [weakref.ref(weight) for weight in moved.values()]
            moved.clear()
            assert not any(ref() is not None for ref in watched)
        return {}

    results_of(2, run)
