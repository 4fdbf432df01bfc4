"""The labeler of pseudo-labels: the client's own model, or the model that it received."""

import copy

import pytest
import torch
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.core.slots import Slot
from fedssl.methods.base import METHODS, Loss
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.functional import predict, snapshot
from fedssl.methods.labeling import BothLabelers, PseudoLabeling, predict_received
from fedssl.methods.pseudo_label import PseudoLabel
from fedssl.methods.supervised import Supervised
from fedssl.models.cnn import CNN
from fedssl.training.learn import learn
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe
from tests.fused import SPEC as IMAGES
from tests.fused import shard as client
from tests.methods.examples import (
    PROGRESS,
    SPEC,
    Watched,
    batch_for,
    linear,
    network_of,
    state_of,
    stream,
)

KINDS = [name for name in METHODS.names() if issubclass(METHODS.get(name), PseudoLabeling)]
BOTH = [name for name in METHODS.names() if issubclass(METHODS.get(name), BothLabelers)]
LOUD = CNN(widths=(4,), hidden=16, norm="batch", dropout=0.5)
"""A model whose evaluation mode differs from its training mode in two ways."""


def local(kind):
    return METHODS.build({"kind": kind, "labeler": "local"})


def received(kind, **settings):
    return METHODS.build({"kind": kind, "labeler": "received"} | settings)


def without_threshold(kind):
    return {"threshold": 0.0} if "threshold" in METHODS.get(kind).model_fields else {}


def loud_network(method, seed=0):
    """Return a network in training mode whose running statistics are not those of its first batch."""
    network = build_network(LOUD, method, SPEC, seed).train()
    with torch.no_grad():
        for number in range(3):
            network(2 * torch.randn(16, *SPEC.shape, generator=stream(number)) + 1)
    return network


def moved(network):
    """Return a copy of a network with other weights and other running statistics."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream(7)))
        other(torch.randn(16, *SPEC.shape, generator=stream(8)))
    return other


def evaluated(network, images):
    """Return what a copy of a network predicts in evaluation mode."""
    return predict(copy.deepcopy(network).eval(), images)


def test_every_method_that_guesses_labels_has_the_choice():
    guessing = {"fixmatch", "flexmatch", "freematch", "mixmatch", "pseudo_label", "remixmatch"}
    assert guessing | {"proxyfl", "softmatch", "uda"} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_received_weights_are_one_more_slot_that_is_made_each_round(kind):
    own, both = local(kind).slots(), received(kind).slots()
    assert both == (Slot("received", "reset"), *own)


def test_fixmatch_keeps_no_state_for_its_own_labels():
    assert FixMatch().slots() == ()


@pytest.mark.parametrize("kind", KINDS)
def test_the_received_model_guesses_as_its_copy_in_evaluation_mode(kind):
    method = received(kind)
    first = loud_network(method)
    state = state_of(method, first)
    network = moved(first)
    images = torch.randn(12, *SPEC.shape, generator=stream(3))
    expected = evaluated(first, images)
    assert torch.equal(method.guess(network, images, state), expected)
    assert not torch.equal(evaluated(network, images), expected)
    assert not torch.equal(predict(first, images), expected)


@pytest.mark.parametrize("labeler", ["local", "received"])
@pytest.mark.parametrize("kind", KINDS)
def test_pseudo_labels_follow_the_labeler_alone(kind, labeler):
    """Steps that move the client's own weights move its own pseudo-labels, and not those of the received model."""
    method = METHODS.build({"kind": kind, "labeler": labeler})
    network = network_of(method)
    given, state = batch_for(method), state_of(method, network)
    first = method.loss(network, given, state, PROGRESS)
    second = method.loss(moved(network), batch_for(method), state, PROGRESS)
    assert torch.equal(first.pseudo_labels, second.pseudo_labels) == (labeler == "received")
    assert not torch.equal(first.total, second.total)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_received_weights(kind):
    method = received(kind, **without_threshold(kind))
    network = network_of(method)
    state = state_of(method, network_of(method, seed=1))
    state["received"] = {k: v.requires_grad_() for k, v in state["received"].items()}
    method.loss(network, batch_for(method, labeled=0), state, PROGRESS).total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert all(tensor.grad is None for tensor in state["received"].values())


def test_a_guess_of_the_received_model_leaves_everything_as_it_is():
    """Neither statistics nor modes change, and nothing is drawn: a layer that was frozen stays frozen."""
    method = received("fixmatch")
    network = loud_network(method)
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    norm.eval()
    state = state_of(method, network)
    kept, own, draws = snapshot(network), state["received"], torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in own.items()}
    method.guess(network, torch.randn(12, *SPEC.shape, generator=stream()), state)
    assert network.training
    assert not norm.training
    assert all(module.training for module in network.modules() if module is not norm)
    assert all(torch.equal(kept[name], tensor) for name, tensor in network.state_dict().items())
    assert all(torch.equal(before[name], own[name]) for name in before)
    assert torch.equal(draws, torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_the_own_model_guesses_by_a_pass_in_training_mode(kind):
    """The same bits, draws and running statistics as a plain pass."""
    method = local(kind)
    network = loud_network(method)
    other, images = copy.deepcopy(network), torch.randn(12, *SPEC.shape, generator=stream())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guessed = method.guess(network, images, {})
        torch.manual_seed(0)
        assert torch.equal(guessed, other(images).detach().softmax(1))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


@pytest.mark.parametrize(("labeler", "outside"), [("local", 0), ("received", 12)])
def test_pseudo_label_takes_its_own_labels_from_the_pass_that_learns(labeler, outside):
    method, network = PseudoLabel(labeler=labeler), Watched(linear())
    method.loss(network, batch_for(method), state_of(method, network), PROGRESS)
    assert (network.images_in_graph, network.images_outside) == (4 + 12, outside)


class Witness(FixMatch):
    """FixMatch that shows what it was given and which pseudo-labels it gave."""

    def loss(self, network, batch, state, progress):
        loss: Loss = super().loss(network, batch, state, progress)
        SEEN.append((batch.unlabeled[0], loss.pseudo_labels, loss.accepted))
        return loss


SEEN = []


def train(method, network, own=None, labeled=4):
    """Train a network by a method for one round of a client; return the state afterwards."""
    recipe = Recipe(method, Train(local_steps=4, batch_size=8, lr=0.5), Augment())
    when = {"seed": 0, "server_round": 1, "client": 0, "phase_round": 1, "phase_rounds": 2}
    _, state = learn(network, client(24, labeled), recipe, {}, **when)
    return state


def test_every_step_of_a_round_learns_from_the_labels_of_the_received_weights():
    SEEN.clear()
    method = Witness(labeler="received", threshold=0.3, unlabeled_ratio=2)
    network = build_network(LOUD, method, IMAGES, 0)
    first = copy.deepcopy(network)
    state = train(method, network)
    assert len(SEEN) == 4
    for weak, pseudo_labels, accepted in SEEN:
        confidence, expected = evaluated(first, weak).max(1)
        assert torch.equal(pseudo_labels, expected)
        assert torch.equal(accepted.bool(), confidence >= 0.3)
    assert any(not torch.equal(evaluated(network, seen[0]).argmax(1), seen[1]) for seen in SEEN)
    weights = first.state_dict()
    assert all(torch.equal(weights[name], held) for name, held in state["received"].items())


@pytest.mark.parametrize(("labeled", "labeler"), [(4, "local"), (0, "received")])
@pytest.mark.parametrize("kind", KINDS)
def test_local_if_labeled_is_one_of_the_two_bit_for_bit(kind, labeled, labeler):
    """A client with labels takes its own labels, and one without those of the received model."""
    trained = []
    for name in ("local_if_labeled", labeler):
        method = METHODS.build({"kind": kind, "labeler": name} | without_threshold(kind))
        network = build_network(LOUD, method, IMAGES, 0)
        state = train(method, network, labeled=labeled)
        assert method.labels_itself(state) == (labeler == "local")
        trained.append(network.state_dict())
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


def test_pseudo_labels_work_is_that_of_the_labeler_that_the_client_has():
    either = PseudoLabel(labeler="local_if_labeled")
    for num_labeled, labeler in ((4, "local"), (0, "received")):
        same = PseudoLabel(labeler=labeler)
        assert either.images_per_step(num_labeled, 12) == same.images_per_step(num_labeled, 12)


def test_received_labels_without_weight_are_supervised_training_bit_for_bit():
    model = CNN(widths=(4,), hidden=16, dropout=0.5)
    trained = []
    for method in (
        Supervised(),
        FixMatch(unlabeled_weight=0, labeler="received"),
        FixMatch(threshold=0, labeler="received"),
    ):
        network = build_network(model, method, IMAGES, 0)
        train(method, network)
        trained.append(torch.cat([weight.flatten() for weight in network.state_dict().values()]))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


# methods that look at both models


def test_the_methods_that_look_at_both_models_are_known():
    assert set(BOTH) == {"fedlabel", "sage"}


@pytest.mark.parametrize("kind", BOTH)
def test_both_models_predict_and_only_the_clients_own_learns(kind):
    """The received model predicts as its copy in evaluation mode, nothing writes to it, and no gradient reaches it."""
    method = METHODS.build({"kind": kind, "threshold": 0.0})
    assert method.slots() == (Slot("received", "reset"),)
    first = loud_network(method)
    state = state_of(method, first)
    network, kept = moved(first), snapshot(first)
    images = torch.randn(12, *SPEC.shape, generator=stream(3))
    assert torch.equal(predict_received(network, images, state), evaluated(first, images))
    state["received"] = {
        name: held.requires_grad_(held.is_floating_point())
        for name, held in state["received"].items()
    }
    method.loss(network, batch_for(method, labeled=0), state, PROGRESS).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert all(held.grad is None for held in state["received"].values())
    assert all(torch.equal(kept[name], held) for name, held in state["received"].items())


@pytest.mark.parametrize("kind", BOTH)
def test_the_received_weights_stay_the_same_through_the_steps_of_a_round(kind):
    method = METHODS.build({"kind": kind, "threshold": 0.0})
    network = build_network(LOUD, method, IMAGES, 0)
    first = snapshot(network)
    state = train(method, network)
    assert all(torch.equal(first[name], held) for name, held in state["received"].items())
    assert any(not torch.equal(first[name], now) for name, now in snapshot(network).items())


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("labeled", [0, 4, 24])
def test_clients_with_all_or_none_of_the_labels_train_and_stay_finite(kind, labeled):
    """Also if nobody is confident, and if everybody is."""
    for threshold in (0.0, 1.0):
        method = METHODS.build({"kind": kind, "threshold": threshold})
        network = build_network(LOUD, method, IMAGES, 0)
        train(method, network, labeled=labeled)
        assert all(torch.isfinite(weight).all() for weight in snapshot(network).values())
