"""UPS: certainty under dropout, positive and negative labels, and rounds in which no prediction meets the limits."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from fedssl.core.errors import InputError
from fedssl.methods.base import Fresh
from fedssl.methods.functional import snapshot
from fedssl.methods.supervised import Supervised
from fedssl.methods.ups import UPS, WithDropout, keep_certain, logits_of, negative_learning
from fedssl.models.cnn import CNN
from fedssl.models.modes import only_dropout
from fedssl.training.network import build_network
from tests.helpers import small_experiment
from tests.methods.examples import (
    PROGRESS,
    SPEC,
    batch,
    learner,
    linear,
    network_of,
    state_of,
    stream,
)
from tests.methods.examples import shard as small_shard
from tests.training.test_loop import equal, shard, train_client  # noqa: F401

MODEL = small_experiment().model
KEEN = {"positive_threshold": 0.0, "positive_spread": 1.0, "negative_spread": 1.0}
"""Limits that every image meets: all of them get a positive label."""


@pytest.fixture
def hidden(shard):  # noqa: F811
    """A client without a label."""
    return dataclasses.replace(shard, labels=torch.full_like(shard.labels, -1))


def passes(*rows):
    """Return logits whose softmax are these rows of probabilities: one image, several passes."""
    return torch.tensor(rows, dtype=torch.float64).log().unsqueeze(1)


def test_negative_learning_by_hand():
    """p = .25 of one negative class: -ln .75 = .2877; of two: the mean; of none: 0."""
    logits = torch.tensor([[0.25, 0.25, 0.5]] * 3).log()
    negative = torch.tensor([[True, False, False], [False, True, True], [False] * 3])
    losses = negative_learning(logits, negative)
    assert losses[0] == pytest.approx(0.2877, abs=5e-5)
    assert losses[1] == pytest.approx((0.2877 + math.log(2)) / 2, abs=5e-5)
    assert losses[2] == 0


def test_certain_of_a_negative_class_costs_a_finite_loss():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = negative_learning(logits, torch.tensor([[True, False]])).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_spread_is_the_unbiased_standard_deviation():
    """Passes {.6, .8}: .1414 and not .1; the mean is .7."""
    found = UPS().select(passes([0.6, 0.4], [0.8, 0.2]))
    assert found.spread.item() == pytest.approx(0.1414, abs=5e-5)
    assert found.classes.tolist() == [0]
    for limit, is_positive in ((0.1, False), (0.1414, False), (0.1415, True)):
        settings = {"positive_threshold": 0.699, "positive_spread": limit}
        assert (
            UPS(**settings).select(passes([0.6, 0.4], [0.8, 0.2])).is_positive.item() == is_positive
        )
    unsure = UPS(positive_threshold=0.701, positive_spread=1.0)
    assert not unsure.select(passes([0.6, 0.4], [0.8, 0.2])).is_positive.item()


def test_negative_labels_are_selected_at_their_temperature():
    """At T = 2, probabilities are square roots, normalized: (.9, .09, .01) becomes (.7034, .2224, .0741)."""
    logits = passes([0.9, 0.09, 0.01], [0.9, 0.09, 0.01])
    for limit, expected in (
        (0.08, [False, False, True]),
        (0.07, [False] * 3),
        (0.9, [False, True, True]),
    ):
        found = UPS(positive_threshold=1, negative_threshold=limit).select(logits)
        assert found.negative.tolist() == [expected], limit
    hard = UPS(positive_threshold=1, negative_threshold=0.05, temperature=1.0).select(logits)
    assert hard.negative.tolist() == [[False, False, True]]


def test_the_spread_limits_negative_labels_too():
    """Of class 2, the probability at T = 1 is .02 or .04: spread .0141."""
    logits = passes([0.9, 0.08, 0.02], [0.9, 0.06, 0.04])
    for limit, expected in ((0.0142, True), (0.0141, False)):
        method = UPS(temperature=1.0, negative_spread=limit, negative_threshold=0.05)
        assert method.select(logits).negative[0, 2].item() == expected


def labeled_by(method, own, progress=PROGRESS, network=None):
    """Return the state after `begin` at a client with random images."""
    network = network or network_of(method, norm=True)
    state = {"labels": method.init_slot("labels", Fresh(network, SPEC, own))}
    one = learner(network, state, own, progress)
    images = 3 * torch.randn(len(own), *SPEC.shape, generator=stream())
    one.show = lambda view, ids=None, *, name: iter([(ids, images[ids])])
    method.begin(one)
    return one


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_no_class_is_positive_and_negative_and_given_labels_stay_out(balance):
    settings = {"negative_threshold": 1.0, "negative_spread": 1.0, "positive_spread": 1.0}
    for threshold in (0.0, 0.15, 1.0):
        method = UPS(**settings, positive_threshold=threshold, balance=balance, least_per_class=1)
        one = labeled_by(method, small_shard())
        labels = one.state["labels"]
        assert not (labels["positive"] & labels["negative"].any(1)).any()
        rows = torch.arange(len(labels["classes"]))
        assert not labels["negative"][rows, labels["classes"]].any()
        assert not labels["positive"][:4].any()
        assert not labels["negative"][:4].any()
        chosen = method.pools(one)
        assert chosen.labeled.tolist() == [0, 1, 2, 3]
        assert chosen.unlabeled.tolist() == list(range(4, 12))


def test_two_passes_differ_while_no_statistics_move():
    network = network_of(UPS(), norm=True).train()
    before = snapshot(network)
    images = torch.randn(6, *SPEC.shape, generator=stream())
    with only_dropout(network):
        first, second = logits_of(network, images), logits_of(network, images)
        modes = {type(m).__name__: m.training for m in network.modules()}
    assert not torch.equal(first, second)
    assert not first.requires_grad
    assert modes["Dropout"]
    assert not modes["BatchNorm1d"]
    assert equal(before, snapshot(network))
    assert all(module.training for module in network.modules())


def test_a_round_begins_with_passes_that_move_nothing(hidden):
    method = UPS()
    network = network_of(method, norm=True).train()
    before = snapshot(network)
    labeled_by(method, small_shard(), network=network)
    assert equal(before, snapshot(network))
    assert method.images_before_steps(4, 10) == pytest.approx(10 * 6 / 3)


def test_balance_keeps_the_most_certain_of_each_class():
    """Classes with 4, 2 and 3 images: two of each stay, those of the lowest spread; an image not chosen does not count."""
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 1])
    spread = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.9, 0.8, 0.3, 0.2, 0.1, 0.0])
    chosen = torch.ones(10, dtype=torch.bool)
    chosen[9] = False
    kept = keep_certain(classes, spread, chosen, 3, 0)
    assert kept.nonzero().squeeze(1).tolist() == [1, 3, 4, 5, 7, 8]
    assert keep_certain(classes, spread, chosen, 3, 25).tolist() == chosen.tolist()
    empty = keep_certain(
        classes, spread, chosen, 4, 1
    )  # a class without an image: the least counts
    assert empty.nonzero().squeeze(1).tolist() == [1, 5, 8]
    assert not keep_certain(classes, spread, torch.zeros(10, dtype=torch.bool), 3, 25).any()


def test_balance_ends_after_its_share_of_the_rounds():
    counts = []
    for round in (1, 3):
        method = UPS(**KEEN, balance=0.4, least_per_class=1)
        progress = dataclasses.replace(PROGRESS, round=round)
        counts.append(
            int(labeled_by(method, small_shard(), progress).state["labels"]["positive"].sum())
        )
    assert counts[0] < counts[1] == 8


def test_the_loss_by_hand():
    """CE on labels, CE over positive rows, negative learning over the other rows; each a mean over its own rows."""
    method = UPS(unlabeled_weight=2.0, dropout=0.5)
    network = network_of(method).eval()
    given = batch(method.views(), labeled=3, unlabeled=4)
    state = state_of(method, network)
    labels = state["labels"]
    labels["classes"][:4] = torch.tensor([1, 2, 3, 4])
    labels["positive"][:4] = torch.tensor([True, True, False, False])
    labels["negative"][2, [0, 5]] = True
    loss = method.loss(network, given, state, PROGRESS)
    logits = network(given.unlabeled[0])
    positive = F.cross_entropy(logits[:2], torch.tensor([1, 2]))
    probs = logits[2].softmax(0)
    negative = -((1 - probs[0]).log() + (1 - probs[5]).log()) / 2
    supervised = F.cross_entropy(network(given.labeled[0]), given.labels)
    expected = supervised + 2 * (positive + negative)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.accepted.tolist() == [1, 1, 0, 0]
    assert loss.numbers["positive"].item() == pytest.approx(2 / 12)
    assert loss.numbers["negative"].item() == pytest.approx(1 / 12)


def test_while_no_prediction_meets_the_limits_training_is_supervised(shard):  # noqa: F811
    """With the model's own dropout, bit for bit."""
    model = small_experiment(model={"dropout": 0.5}).model
    none = UPS(dropout=0, positive_threshold=1, positive_spread=0, negative_threshold=0)
    trained, report = train_client(none, shard, model=model)
    plain, _ = train_client(Supervised(), shard, model=model)
    assert list(trained) == [f"classifier.{name}" for name in plain]
    assert all(torch.equal(trained[f"classifier.{name}"], plain[name]) for name in plain)
    assert report.num_steps == 3
    assert report.accepted == 0
    assert report.considered > 0


def test_a_client_without_labels_and_without_pseudo_labels_sits_out(hidden):
    none = UPS(positive_threshold=1, positive_spread=0, negative_threshold=0)
    _, report = train_client(none, hidden)
    assert report.is_inactive
    assert report.num_steps == 0
    _, report = train_client(UPS(**KEEN, balance=0.0), hidden)
    assert not report.is_inactive
    assert report.accepted == report.considered > 0


def test_a_round_starts_from_the_weights_that_were_received(hidden):
    """Not from scratch: the pseudo-labels are made, and the first loss is computed, with the weights as received."""
    seen = []

    class Noted(UPS):
        def begin(self, learner):
            seen.append(snapshot(learner.network))
            super().begin(learner)
            seen.append(snapshot(learner.network))

        def loss(self, network, batch, state, progress):
            seen.append(snapshot(network))
            return super().loss(network, batch, state, progress)

    method = Noted(**KEEN)
    received = snapshot(build_network(MODEL, method, hidden.spec, 0))
    trained, _ = train_client(method, hidden)
    assert all(
        weights.keys() == received.keys() and equal(weights, received) for weights in seen[:3]
    )
    assert not equal(seen[3], received)
    assert not equal(trained, received)
    assert received.keys() == trained.keys()
    assert UPS().comes_from("trunk.0.weight") == "trunk.0.weight"


def test_the_method_needs_dropout():
    with pytest.raises(InputError, match=r"method\.dropout"):
        UPS(dropout=0).network(lambda: CNN(widths=(4,), hidden=8).build((1, 8, 8), 10))
    own = CNN(widths=(4,), hidden=8, dropout=0.5).build((1, 8, 8), 10)
    assert isinstance(UPS(dropout=0).network(lambda: own), WithDropout)
    assert UPS().network(linear).dropout.p == 0.3


def test_the_classifier_is_the_network_without_dropout():
    method, network = UPS(), network_of(UPS()).eval()
    images = torch.randn(5, *SPEC.shape, generator=stream())
    assert torch.equal(network(images), method.classifier(network)(images))
    assert torch.equal(network.features(images), network.classifier.features(images))
