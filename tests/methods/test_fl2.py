"""(FL)^2: thresholds by client and class, predictions that stay the same at perturbed weights, and weights by uncertainty."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedssl.data.shard import Shard, as_float
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.methods import fl2 as module
from fedssl.methods.base import Fresh
from fedssl.methods.fl2 import ETA, FL2, class_thresholds, mean_confidence, perturbation
from fedssl.methods.functional import predict, snapshot
from fedssl.models.cnn import CNN
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from tests.contract.test_strategies import messages_of, reply_to
from tests.methods.examples import PROGRESS, SPEC, batch_for, linear, state_of
from tests.methods.examples import learner as learner_of
from tests.training.test_loop import equal, shard, train_client  # noqa: F401

LOUD = CNN(widths=(4,), hidden=16, norm="batch", dropout=0.5)
"""A model with running statistics and dropout."""


@pytest.fixture
def hidden(shard):  # noqa: F811
    """A client without a label."""
    return dataclasses.replace(shard, labels=torch.full_like(shard.labels, -1))


def labeled_by(rows, method=None, given=None):
    """Return a learner after `begin` at a client whose received model has these predictions; `given` are its labels."""
    method, probs = method or FL2(), torch.tensor(rows)
    count = len(probs)
    labels = torch.full((count,), -1) if given is None else torch.tensor(given)
    images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
    own = Shard(images, labels, torch.zeros(count, dtype=torch.int64), SPEC)
    fresh = Fresh(linear(), SPEC, own)
    one = learner_of(nn.Flatten(), {"labels": method.init_slot("labels", fresh)}, own)

    def show(view, ids=None, *, name):
        assert view == "weak"
        logits = probs.log().view(count, 1, 1, -1)
        for chunk in torch.arange(count).split(5):
            yield chunk, logits[chunk]

    one.show = show
    method.begin(one)
    return one


# thresholds


TYPES = [[0.8, 0.2, 0.0]] * 17 + [[0.2, 0.8, 0.0]] * 4 + [[0.0, 0.2, 0.8]] * 3
"""Predictions with a mean confidence of .8, whose mean is (.6, .3, .1)."""


def test_the_thresholds_by_hand():
    probs = torch.tensor(TYPES)
    assert float(mean_confidence(probs)) == pytest.approx(0.8)
    assert class_thresholds(probs).tolist() == pytest.approx([0.8, 0.4, 0.8 / 6])


def test_the_train_set_is_what_reaches_the_threshold_of_its_class():
    """p = (.65, .35) and tau = .7: the thresholds are .7 and .7 * .35 / .65 = .377, so .6 is enough for class 1 only."""
    rows = [[0.9, 0.1], [0.7001, 0.2999], [0.85, 0.15], [0.45, 0.55], [0.6, 0.4], [0.4, 0.6]]
    one = labeled_by(rows)
    assert class_thresholds(torch.tensor(rows)).tolist() == pytest.approx([0.7, 0.377], abs=1e-3)
    assert one.state["labels"]["classes"].tolist() == [0, 0, 0, 1, 0, 1]
    chosen = FL2().pools(one)
    assert chosen.unlabeled.tolist() == [0, 1, 2, 3, 5]
    assert len(chosen.labeled) == 0


def test_the_fixed_set_is_the_confident_part_of_the_train_set():
    """With tau = .99, the image of .96 fails its class's threshold, and so it is not in the fixed set either."""
    one = labeled_by([[0.96, 0.04], [0.999, 0.001], [0.999, 0.001], [0.002, 0.998]])
    assert one.state["labels"]["selected"].tolist() == [False, True, True, True]
    assert one.state["labels"]["confident"].tolist() == [False, True, True, True]
    unsure = labeled_by([[0.96, 0.04], [0.6, 0.4], [0.97, 0.03], [0.05, 0.95]])
    assert unsure.state["labels"]["selected"].tolist() == [True, False, True, True]
    assert unsure.state["labels"]["confident"].tolist()[:3] == [True, False, True]


@pytest.mark.parametrize("count", [1, 3, 7, 10, 97, 300])
def test_the_train_set_is_never_empty(count):
    """Where all images have the same confidence, the mean must not be rounded above it."""
    for top in torch.linspace(0.3, 0.9, 23).tolist():
        one = labeled_by([[top, 0.05, 0.95 - top]] * count)
        assert one.state["labels"]["selected"].all()


def test_a_given_label_stays_and_counts_as_confident():
    """The received model is wrong of the first image, and not confident of any image."""
    rows = [[0.1, 0.9], [0.55, 0.45], [0.9, 0.1]]
    one = labeled_by(rows, given=[0, 1, -1])
    labels = one.state["labels"]
    assert labels["classes"].tolist() == [0, 1, 0]
    assert labels["selected"].tolist() == [True, True, True]
    assert labels["confident"].tolist() == [True, True, False]
    alone = labeled_by(rows).state["labels"]
    assert labels["uncertainty"] == alone["uncertainty"]  # what is measured is the received model


def test_all_images_are_labeled_once_in_evaluation_mode_outside_the_graph(hidden):
    network = build_network(LOUD, FL2(), hidden.spec, 0).train()
    before, alone = snapshot(network), copy.deepcopy(network).eval()
    passes = []
    network.register_forward_hook(lambda _, inputs, output: passes.append(output.requires_grad))
    fresh = Fresh(network, hidden.spec, hidden)
    one = learner_of(network, {"labels": FL2().init_slot("labels", fresh)}, hidden)
    images = hidden.spec.normalize(as_float(hidden.images))
    one.show = lambda view, ids=None, *, name: [(hidden.unlabeled, images)]
    FL2().begin(one)
    assert passes == [False]
    assert torch.equal(one.state["labels"]["classes"], predict(alone, images).argmax(1))
    assert equal(before, snapshot(network))
    assert all(layer.training for layer in network.modules())


def test_the_shares_are_those_of_the_shard():
    one = labeled_by([[0.96, 0.04], [0.6, 0.4], [0.97, 0.03], [0.97, 0.03]])
    given = batch_for(FL2(), unlabeled=4)
    numbers = FL2().loss(linear(classes=2), given, one.state, PROGRESS).numbers
    assert float(numbers["selected"]) == float(numbers["confident"]) == 0.75
    assert float(numbers["uncertainty"]) == pytest.approx(1 - 0.875)


# the perturbation


def test_the_perturbation_by_hand():
    """t = 2 and g = 2 for the weight, t = 1 and g = 3 for the bias: t g = (4, 3), of length 5."""
    weights = {"a.weight": torch.tensor([[-(2 - ETA)]]), "a.bias": torch.tensor([7.0])}
    gradients = {"a.weight": torch.tensor([[2.0]]), "a.bias": torch.tensor([3.0])}
    push = perturbation(weights, gradients, rho=0.5)
    assert float(push["a.weight"]) == pytest.approx(0.5 * 2 * 4 / 5)
    assert float(push["a.bias"]) == pytest.approx(0.5 * 3 / 5)


def test_the_perturbation_has_length_rho_relative_to_the_weights():
    weights = {name: p.detach() for name, p in linear(norm=True).named_parameters()}
    generator = torch.Generator().manual_seed(1)
    gradients = {n: torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    push = perturbation(weights, gradients, rho=0.3)
    assert push.keys() == weights.keys()
    relative = [
        push[n] / (w.abs() + ETA) if n.endswith("weight") else push[n] for n, w in weights.items()
    ]
    length = torch.cat([r.flatten() for r in relative]).norm()
    assert float(length) == pytest.approx(0.3, rel=1e-5)


def test_without_a_gradient_nothing_is_perturbed():
    weights = {name: p.detach() for name, p in linear().named_parameters()}
    push = perturbation(weights, {n: torch.zeros_like(w) for n, w in weights.items()}, rho=1.0)
    assert all((p == 0).all() for p in push.values())


# the loss


def case(fixed, norm=False):
    """Return (network, batch, state) of six images, some of them in the fixed set, with labels 0, 1, 2, 0, 1, 2."""
    network, given = linear(3, norm=norm), batch_for(FL2(), unlabeled=6)
    state = state_of(FL2(), network)
    state["labels"]["classes"][:6] = torch.arange(6) % 3
    state["labels"]["confident"][fixed] = True
    state["labels"]["selected"][:6] = True
    return network, given, state


def gradients_of(network, total):
    named = dict(network.named_parameters())
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


@pytest.mark.parametrize("fixed", [[0], [1, 4], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("rho", [0.1, 1.0])
def test_the_loss_and_its_gradient_are_those_of_a_copy_with_moved_weights(fixed, rho):
    """The way of the official code: the weights of a copy are moved, and the two gradients are added."""
    network, given, state = case(fixed)
    (strong,), labels = given.unlabeled, torch.arange(6) % 3
    climb = F.cross_entropy(network(strong)[fixed], labels[fixed])
    push = perturbation(dict(network.named_parameters()), gradients_of(network, climb), rho)
    moved = copy.deepcopy(network)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            p.add_(push[name])
    probs = network(strong).detach().softmax(1)
    log_probs = moved(strong).log_softmax(1)
    divergence = sum(
        sum(p * (math.log(p) - log_probs[i][c]) for c, p in enumerate(probs[i].tolist()))
        for i in fixed
    )
    regularizer, plain = divergence / 6, F.cross_entropy(network(strong), labels)
    loss = FL2(rho=rho).loss(network, given, state, PROGRESS)
    assert float(regularizer.detach()) > 1e-4
    assert float(loss.total.detach()) == pytest.approx(float((plain + regularizer).detach()))
    own, at_copy = gradients_of(network, plain), gradients_of(moved, regularizer)
    for name, found in gradients_of(network, loss.total).items():
        assert torch.allclose(found, own[name] + at_copy[name], atol=1e-6), name


def test_without_a_perturbation_nothing_is_regularized():
    network, given, state = case([0, 1, 2])
    plain = F.cross_entropy(network(given.unlabeled[0]), torch.arange(6) % 3)
    loss = FL2(rho=0).loss(network, given, state, PROGRESS)
    assert float((loss.total - plain).detach()) == pytest.approx(0, abs=1e-6)
    expected = gradients_of(network, plain)
    for name, found in gradients_of(network, loss.total).items():
        assert torch.allclose(found, expected[name], atol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
def test_an_empty_fixed_set_regularizes_by_exactly_nothing(norm):
    network, given, state = case([], norm=norm)
    plain = F.cross_entropy(network(given.unlabeled[0]), torch.arange(6) % 3)
    loss = FL2(rho=1.0).loss(network, given, state, PROGRESS)
    assert torch.equal(loss.total, plain)
    assert equal(gradients_of(network, loss.total), gradients_of(network, plain))


def test_the_weights_are_never_written_to():
    """Not even for a moment: each write to a tensor counts its version up."""
    network, given, state = case([0, 1])
    versions = {name: p._version for name, p in network.named_parameters()}
    FL2().loss(network, given, state, PROGRESS).total.backward()
    assert versions == {name: p._version for name, p in network.named_parameters()}


def test_a_step_moves_the_weights_by_the_gradient_alone(hidden):
    """One step of plain gradient descent is the received weights minus lr times the gradient of the loss, to the bit."""
    seen = []

    class Noted(FL2):
        def step(self, learner, batch):
            before = snapshot(learner.network)
            total = self.loss(learner.network, batch, learner.state, learner.progress).total
            seen.append((before, learner.gradients(total, "main")))
            return super().step(learner, batch)

    train = Train(local_steps=1, batch_size=8, lr=0.25, momentum=0, nesterov=False, weight_decay=0)
    after, _ = train_client(Noted(threshold=0.1, rho=1.0), hidden, train)
    ((before, gradients),) = seen
    assert equal({n: before[n] - 0.25 * g for n, g in gradients.items()}, after)


def test_statistics_of_normalizations_move_once():
    network, given, state = case([0, 1, 2], norm=True)
    once = copy.deepcopy(network)
    once(given.unlabeled[0])
    FL2(rho=1.0).loss(network, given, state, PROGRESS)
    assert equal(dict(once.named_buffers()), dict(network.named_buffers()))


def test_both_passes_drop_the_same_features(hidden):
    """Without a perturbation, the two passes of a network with dropout have the same predictions."""
    network = build_network(LOUD, FL2(), hidden.spec, 0).train()
    images = torch.randn(6, *hidden.spec.shape, generator=torch.Generator().manual_seed(0))
    given = dataclasses.replace(batch_for(FL2(), unlabeled=6), unlabeled=(images,))
    _, _, state = case([0, 1, 2])
    logits = []
    network.register_forward_hook(lambda _, inputs, output: logits.append(output))
    FL2(rho=0).loss(network, given, state, PROGRESS)
    first, second = logits
    assert (first - second).abs().max() < 1e-5  # another mask would be seen in the first digit


def test_weights_that_stay_at_the_client_are_not_perturbed(monkeypatch):
    class Private(FL2):
        def is_shared(self, key):
            return not key.startswith("head.")

    moved, real = [], module.call_with

    def noting(network, tensors, images):
        moved.append(set(tensors))
        return real(network, tensors, images)

    monkeypatch.setattr(module, "call_with", noting)
    network, given, state = case([0])
    loss = Private().loss(network, given, state, PROGRESS)
    assert moved == [{"trunk.1.weight", "trunk.1.bias"}]
    assert all(g.abs().sum() > 0 for g in gradients_of(network, loss.total).values())


# whole rounds


def test_labels_stay_the_same_for_the_round_and_every_step_records_the_same_number(hidden):
    states = []

    class Noted(FL2):
        def after_step(self, learner, batch, loss):
            labels = learner.state["labels"]
            assert torch.equal(loss.pseudo_labels, labels["classes"][batch.unlabeled_ids])
            assert labels["selected"][batch.unlabeled_ids].all()
            states.append({name: tensor.clone() for name, tensor in labels.items()})

    train = Train(local_steps=7, batch_size=8, lr=0.5)
    _, report = train_client(Noted(threshold=0.1), hidden, train)
    assert len(states) == 7
    assert all(equal(states[0], state) for state in states)
    assert report.numbers["uncertainty"] == float(states[0]["uncertainty"])
    assert report.numbers["selected"] == float(states[0]["selected"].float().mean())


@pytest.mark.parametrize("epochs", [0.5, 2])
def test_an_epoch_is_a_pass_over_the_train_set(hidden, epochs):
    _, report = train_client(FL2(), hidden, Train(local_epochs=epochs, batch_size=8))
    size = round(report.numbers["selected"] * len(hidden))
    assert 0 < size < len(hidden)
    assert report.num_steps == math.ceil(epochs * size / 8)
    assert report.num_confident(0, len(hidden)) == pytest.approx(size)


@pytest.mark.parametrize("norm", ["none", "batch", "static"])
@pytest.mark.parametrize("whose", ["labels only", "no label", "one image"])
def test_no_client_gives_nan(hidden, shard, whose, norm):  # noqa: F811
    all_labels = dataclasses.replace(shard, labels=shard.truth.clone())
    one_image = Shard(hidden.images[:1], hidden.labels[:1], hidden.truth[:1], hidden.spec)
    own = {"labels only": all_labels, "no label": hidden, "one image": one_image}[whose]
    model = CNN(widths=(4,), hidden=16, norm=norm)
    weights, report = train_client(FL2(rho=1.0), own, model=model)
    assert not report.is_inactive
    assert report.num_steps == 3
    assert math.isfinite(report.loss)
    assert all(tensor.isfinite().all() for tensor in weights.values())


# the mean


def share_of_the_first(*confidences):
    """Return the share of the first of some clients in the mean of a real strategy, by the clients' mean confidence."""
    uncertainties = []
    for confidence in confidences:
        one = labeled_by([[confidence, 1 - confidence]] * 4)
        loss = FL2().loss(linear(classes=2), batch_for(FL2(), unlabeled=4), one.state, PROGRESS)
        uncertainties.append(float(loss.numbers["uncertainty"]))
    section = {"kind": "fedavg", "weight": "number:uncertainty"}
    strategy, messages = messages_of(section, Census.unknown(6), sample=len(confidences))
    replies = [
        reply_to(message, float(place == 0), **{"number/uncertainty": uncertainty})
        for place, (message, uncertainty) in enumerate(zip(messages, uncertainties, strict=True))
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    return float(protocol.from_record(arrays)["w"][0])


def test_less_confident_clients_count_more():
    assert share_of_the_first(0.9, 0.5) == pytest.approx(1 / 6, rel=1e-5)
    assert share_of_the_first(0.5, 0.9) == pytest.approx(5 / 6, rel=1e-5)


def test_clients_that_are_all_certain_count_alike():
    assert share_of_the_first(1.0, 1.0, 1.0) == pytest.approx(1 / 3)
    assert share_of_the_first(1.0, 0.5) < 1e-5
