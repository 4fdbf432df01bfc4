"""ProxyFL at the clients: class sets, a contrastive loss with proxies, and the prior that the server sends back."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.methods import proxyfl as module
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.functional import call_with, mean_where, predict, snapshot
from fedssl.methods.proxies import (
    Rows,
    WithProxyHeads,
    candidate_weights,
    class_sets,
    contrast_loss,
)
from fedssl.methods.proxyfl import ProxyFL, next_prior
from fedssl.models.base import Classifier
from fedssl.server.app import serve
from tests.helpers import federation_of, small_experiment
from tests.methods.examples import PROGRESS, batch_for, learner, linear, network_of, state_of
from tests.training.test_loop import shard, train_client  # noqa: F401

VARIANTS = ["code", "paper"]

EVEN = torch.full((4,), 0.25)


def no(count):
    return torch.zeros(count, dtype=torch.bool)


def rows(features, sets, ids=None):
    """Return images whose class sets are given as lists of classes, of four classes."""
    known = torch.zeros(len(sets), 4, dtype=torch.bool)
    for row, classes in enumerate(sets):
        known[row, classes] = True
    ids = list(range(len(sets))) if ids is None else ids
    return Rows(torch.tensor(features), known, torch.tensor(ids))


@torch.no_grad()
def sharp(network):
    """Return the network with predictions that differ more from image to image."""
    network.classifier.head.weight.mul_(5)
    return network


def nobody():
    return Rows(torch.zeros(0, 2), torch.zeros(0, 4, dtype=torch.bool), torch.zeros(0).long())


# ---- class sets ----


def test_candidates_are_the_classes_above_the_prior():
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    prior = torch.tensor([0.5, 0.1, 0.25, 0.05])
    assert class_sets(probs, prior, no(1)).tolist() == [[False, True, False, True]]


def test_a_confident_image_has_its_label_alone():
    probs = torch.tensor([[0.4, 0.6, 0.0, 0.0]])
    assert class_sets(probs, EVEN, ~no(1)).tolist() == [[False, True, False, False]]
    assert class_sets(probs, EVEN, no(1)).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("num_classes", [2, 3, 7, 10, 100])
def test_a_prediction_that_is_the_prior_has_no_candidate(num_classes):
    even = torch.full((num_classes,), 1 / num_classes)
    assert not class_sets(even.unsqueeze(0), even, no(1)).any()


def test_the_positive_weighs_candidates_by_their_probability_and_a_label_by_one():
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.8, 0.1, 0.0]])
    is_confident = torch.tensor([False, True])
    weights = candidate_weights(probs, class_sets(probs, EVEN, is_confident), is_confident)
    expected = torch.tensor([[0.4, 0.3, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert torch.equal(weights, expected)


# ---- the contrastive loss ----


def test_the_contrast_by_hand():
    """Image 0 has positive 1 and one negative at 0 (image 1); image 2 shares a class with it."""
    anchors = rows([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[0], [1], [0, 2]])
    positives = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.5]])
    others = rows([[0.0, 3.0]], [[3]], ids=[9])
    found = contrast_loss(anchors, positives, others)
    expected = [
        math.log(1 + math.exp(0 - 1) + math.exp(0 - 1)),  # images 1 and 9
        math.log(1 + math.exp(0 - 2) + math.exp(1 - 2) + math.exp(3 - 2)),  # images 0, 2 and 9
        math.log(1 + math.exp(1 - 1) + math.exp(3 - 1)),  # images 1 and 9
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_only_similar_images_push_each_other_in_the_code():
    anchors = rows([[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]], [[0], [1], [2]])
    positives = torch.tensor([[1.0, 0.0]] * 3)
    found = contrast_loss(anchors, positives, nobody(), least_similarity=1e-6)
    assert float(found[0]) == pytest.approx(math.log(1 + math.exp(0.6 - 1)))
    assert found[1] == 0  # both others are on the other side


def test_an_image_without_negatives_adds_nothing_and_moves_nothing():
    anchors = rows([[1.0, 2.0], [3.0, 4.0]], [[0, 1], [1, 2]])
    features = anchors.features.requires_grad_()
    positives = torch.ones(2, 2, requires_grad=True)
    found = contrast_loss(anchors, positives, nobody())
    assert found.tolist() == [0, 0]
    found.sum().backward()
    assert not features.grad.any()
    assert not positives.grad.any()


def test_an_image_with_an_empty_set_neither_pulls_nor_pushes():
    whole = rows([[1.0, 2.0], [3.0, 4.0], [0.5, 0.0]], [[0], [1], []])
    part = rows([[1.0, 2.0], [3.0, 4.0]], [[0], [1]])
    found = contrast_loss(whole, torch.ones(3, 2), nobody())
    assert found[2] == 0
    assert torch.equal(found[:2], contrast_loss(part, torch.ones(2, 2), nobody()))


def test_copies_of_an_image_never_push_each_other():
    """Two views of image 5 whose candidates have nothing in common, and its own labeled view."""
    anchors = rows([[1.0, 0.0], [1.0, 0.0]], [[0], [1]], ids=[5, 5])
    labeled = rows([[1.0, 0.0]], [[2]], ids=[5])
    assert contrast_loss(anchors, torch.ones(2, 2), labeled).tolist() == [0, 0]


def test_features_positives_and_proxies_learn():
    method = ProxyFL(threshold=1.0, unlabeled_weight=0)
    network = sharp(network_of(method))
    loss = method.loss(network, batch_for(method, labeled=0), state_of(method, network), PROGRESS)
    loss.total.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in network.named_parameters() if "bias" not in n)


# ---- means and the prior ----


def test_means_of_nothing_are_0():
    values = torch.tensor([2.0, 4.0, 6.0])
    none, two = no(3), torch.tensor([True, False, True])
    assert mean_where(values, none) == 0
    assert mean_where(values, two) == 4
    assert float(mean_where(values, two, of_all=True)) == pytest.approx(8 / 3)
    assert mean_where(values[:0], none[:0], of_all=True) == 0
    assert mean_where(values[:0], none[:0]) == 0


def test_the_prior_moves_by_its_decay():
    """.99 (.25, .25, .25, .25) + .01 (6, 2, 0, 0) / 8."""
    found = next_prior(EVEN, torch.tensor([6.0, 2.0, 0.0, 0.0]), 0.99)
    torch.testing.assert_close(found, torch.tensor([0.255, 0.25, 0.2475, 0.2475]))
    found = next_prior(EVEN, torch.tensor([6.0, 2.0, 0.0, 0.0]), 0.0)
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25, 0.0, 0.0]))
    assert torch.equal(next_prior(EVEN, torch.zeros(4), 0.0), EVEN)


def test_a_round_counts_labels_and_accepted_pseudo_labels():
    method, network = ProxyFL(prior_decay=0.5), linear()
    training = learner(network, state_of(method, network))
    given = replace(batch_for(method), labels=torch.tensor([0, 0, 1, 3]))
    pseudo_labels = torch.tensor([2] * 6 + [9] * 6)
    accepted = torch.tensor([1.0] * 6 + [0.0] * 6)
    method.begin(training)
    for _ in range(2):
        method.after_step(training, given, module.Loss(torch.zeros(()), pseudo_labels, accepted))
    method.end(training)
    expected = torch.full((10,), 0.05)
    expected[:4] += torch.tensor([0.1, 0.05, 0.3, 0.05])
    torch.testing.assert_close(training.state["prior"]["probs"], expected)


def test_a_client_that_learned_from_no_class_sends_the_prior_back():
    method, network = ProxyFL(threshold=1.0, prior_decay=0.0), linear()
    training = learner(network, state_of(method, network))
    before = training.state["prior"]["probs"].clone()
    method.begin(training)
    method.end(training)
    assert torch.equal(training.state["prior"]["probs"], before)


def test_the_servers_prior_is_the_plain_mean_of_the_cohorts_shares():
    """With nobody confident, a client's share is that of its labels in the batches: all its labels, if a batch has all."""
    federation = {"clients": 4, "sample": 4, "labels": {"per_class": 2}}
    experiment = small_experiment(
        method={"kind": "proxyfl", "threshold": 1.0, "prior_decay": 0.5},
        federation=federation, rounds=1, train={"local_steps": 1, "batch_size": 20},
    )  # fmt: skip
    drawn = federation_of(experiment)
    shares = []
    for client in range(4):
        own = drawn.shard(client)
        labels = own.labels[own.labels >= 0]
        shares.append(
            F.one_hot(labels, 10).double().mean(0) if len(labels) else torch.full((10,), 0.1)
        )
    state = serve(experiment, SerialGrid(Apps(app), 4), []).model.state
    expected = 0.5 * 0.1 + 0.5 * torch.stack(shares).mean(0)
    assert abs(torch.from_numpy(state["prior/probs"]) - expected).max() < 0.02


# ---- the loss ----


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("labeled", "unlabeled"), [(4, 12), (0, 12), (4, 0), (0, 0)])
def test_never_nan(variant, threshold, labeled, unlabeled):
    """Everybody, some and nobody confident; without labels, and with labels only."""
    method = ProxyFL(variant=variant, threshold=threshold)
    network = network_of(method)
    given = batch_for(method, labeled=labeled, unlabeled=unlabeled)
    loss = method.loss(network, given, state_of(method, network), PROGRESS)
    assert torch.isfinite(loss.total)
    if loss.total.requires_grad:
        loss.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert len(loss.accepted) == unlabeled


@pytest.mark.parametrize("variant", VARIANTS)
def test_even_predictions_under_the_first_prior_add_nothing(variant):
    method = ProxyFL(variant=variant)
    network = network_of(method)
    with torch.no_grad():
        method.classifier(network).head.weight.zero_()
        method.classifier(network).head.bias.zero_()
    given = batch_for(method, labeled=0)
    loss = method.loss(network, given, state_of(method, network), PROGRESS)
    assert loss.numbers["candidates"] == 0
    assert loss.total == 0
    loss.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_and_sets_are_those_of_the_received_model(variant):
    """The paper accepts a label if the received model is confident; the code also if the client's own model is."""
    method = ProxyFL(variant=variant, threshold=0.15)
    network, before = network_of(method), network_of(method, seed=1)
    given = batch_for(method)
    loss = method.loss(network, given, state_of(method, before), PROGRESS)
    theirs = predict(before, given.unlabeled[0])
    own = predict(network, given.unlabeled[0])
    accepted = theirs.max(1).values >= 0.15
    if variant == "code":
        accepted |= own.max(1).values >= 0.15
    assert torch.equal(loss.pseudo_labels, theirs.argmax(1))
    assert torch.equal(loss.accepted.bool(), accepted)
    sets = (theirs[~accepted] > 0.1).sum(1).float().mean()
    assert loss.numbers["candidates"] == sets


def of_labeled(method, network, given):
    return float(F.cross_entropy(network(given.labeled[0]), given.labels).detach())


def test_the_codes_loss_is_fixmatchs_plus_the_contrast():
    """With nothing but the received model confident, at the very network that was received."""
    network = network_of(ProxyFL())
    given = batch_for(ProxyFL())
    middle = float(predict(network, given.unlabeled[0]).max(1).values.median())
    method = ProxyFL(threshold=middle)
    state = state_of(method, network)
    loss = method.loss(network, given, state, PROGRESS)
    assert 0 < loss.accepted.sum() < 12
    fixmatch = FixMatch(labeler="received", threshold=middle)
    plain = fixmatch.loss(network, given, state, PROGRESS).total
    assert float(loss.total.detach()) == pytest.approx(
        float(plain.detach() + loss.numbers["contrast"]), rel=1e-5
    )


def test_the_papers_loss_from_its_equations():
    """Equations 4 and 6 to 10, image by image."""
    method = ProxyFL(variant="paper", threshold=0.2, contrast_weight=2.0, unlabeled_weight=3.0)
    network, before = network_of(method, seed=3), network_of(method, seed=2)
    given = batch_for(method, labeled=6)
    with torch.no_grad():
        for net in (network, before):
            net.head.weight.mul_(3)
    given = replace(given, labeled_ids=given.labeled_ids + 100)
    loss = method.loss(network, given, state_of(method, before), PROGRESS)
    weak, strong = given.unlabeled
    with torch.no_grad():
        received = call_with(network, snapshot(before), weak).softmax(1)
        own = network(weak).softmax(1)
        z, zx, w = network.features(weak), network.features(given.labeled[0]), network.head.weight
        sets, confident = [], []
        for q in received:
            confident.append(bool(q.max() >= 0.2))
            sets.append(
                {int(q.argmax())} if confident[-1] else {c for c in range(10) if q[c] > 0.1}
            )
        groups = {True: [], False: []}
        for i in range(12):
            if confident[i]:
                positive = w[received[i].argmax()]
            else:
                positive = sum((own[i, c] * w[c] for c in sets[i]), torch.zeros(8))
            negatives = [z[j] for j in range(12) if not sets[j] & sets[i]]
            negatives += [zx[j] for j in range(6) if int(given.labels[j]) not in sets[i]]
            top = math.exp(z[i] @ positive)
            groups[confident[i]].append(
                -math.log(top / (top + sum(math.exp(z[i] @ n) for n in negatives)))
            )
        assert groups[True]
        assert groups[False]
        contrast = sum(sum(group) / len(group) for group in groups.values())
        logits = network(strong)[torch.tensor(confident)]
        labels = received.argmax(1)[torch.tensor(confident)]
        unlabeled = float(F.cross_entropy(logits, labels))
    total = of_labeled(method, network, given) + 3 * unlabeled + 2 * contrast
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5)


def test_labels_decide_which_labeled_images_push():
    """The official code takes the received model's prediction for the set of a labeled image; its label is known."""
    method = ProxyFL(threshold=1.0)
    network = network_of(method)
    given, state = batch_for(method), state_of(method, network)
    given = replace(given, labeled_ids=given.labeled_ids + 100)
    totals = {
        float(method.loss(network, replace(given, labels=(given.labels + k) % 10), state, PROGRESS).numbers["contrast"])
        for k in range(10)
    }  # fmt: skip
    assert len(totals) > 1


def test_both_variants_map_images_to_logits_and_only_the_codes_has_more_weights():
    plain = network_of(ProxyFL(variant="paper"))
    heads = network_of(ProxyFL())
    assert isinstance(plain, Classifier)
    assert isinstance(heads, WithProxyHeads)
    assert ProxyFL().classifier(heads) is heads.classifier
    more = sum(p.numel() for p in heads.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 8 * 8 + 8 + 8 * 8


def test_a_model_without_proxies_is_refused():
    with pytest.raises(InputError, match=r"model.kind: does not end in a linear layer"):
        ProxyFL().network(lambda: Classifier(nn.Flatten(), nn.Identity(), 16))


@pytest.mark.parametrize("settings", [{"unlabeled_weight": 0}, {"contrast_weight": 0}])
def test_clients_without_labels_learn_unless_both_weights_are_0(settings):
    assert ProxyFL(**settings).can_learn(0)
    assert not ProxyFL(unlabeled_weight=0, contrast_weight=0).can_learn(0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_client_trains_with_and_without_labels(shard, variant):  # noqa: F811
    for labels in (shard.labels, torch.full_like(shard.labels, -1), shard.truth):
        own = dataclasses.replace(shard, labels=labels)
        trained, report = train_client(ProxyFL(variant=variant, threshold=0.3), own)
        assert report.num_steps == 3
        assert all(tensor.isfinite().all() for tensor in trained.values())
