"""SemiFL: labels once a round by the received model, a fix set of confident images, a mix set of any images."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.core import rng
from fedssl.core.errors import InputError
from fedssl.data.shard import Shard
from fedssl.methods import functional as pieces
from fedssl.methods import semifl as module
from fedssl.methods.base import METHODS, Batch, Fresh
from fedssl.methods.functional import predict, snapshot
from fedssl.methods.semifl import SemiFL
from fedssl.models.cnn import CNN
from fedssl.training.batches import show_in_order
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from tests.helpers import small_experiment
from tests.methods.examples import PROGRESS, SPEC, Watched, batch_for, linear, state_of, stream
from tests.methods.examples import learner as learner_of
from tests.methods.examples import shard as small_shard
from tests.training.test_loop import equal, shard, train_client  # noqa: F401

LN3 = math.log(3)
"""Logits (ln 3, 0) are the probabilities 3/4 and 1/4."""

MODEL = small_experiment().model

LOUD = CNN(widths=(4,), hidden=16, norm="batch", dropout=0.5)
"""A model whose evaluation mode differs from its training mode in two ways."""


@pytest.fixture
def hidden(shard):  # noqa: F811
    """A client without a label."""
    return dataclasses.replace(shard, labels=torch.full_like(shard.labels, -1))


def labels_of(classes, confidence):
    return {"labels": {"classes": torch.tensor(classes), "confidence": torch.tensor(confidence)}}


# the loss


def pairs(strong, weak, mix, mix_labels, ids):
    """Return a batch of images of two pixels, which `nn.Flatten` makes logits of two classes."""

    def images(rows):
        return torch.tensor(rows).view(-1, 1, 1, 2)

    labels = torch.tensor(mix_labels)
    return Batch(
        labeled=(images(mix),), labels=labels, labeled_ids=torch.zeros_like(labels),
        unlabeled=(images(weak), images(strong)), unlabeled_ids=torch.tensor(ids), generator=stream(),
    )  # fmt: skip


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_the_loss_by_hand(monkeypatch, weight):
    """With lambda = 1/4, the mixed image is (ln 3, 0): 3/4 for the fix label, 1/4 for the mix label."""
    monkeypatch.setattr(module, "draw_mixing_shares", lambda *_: torch.tensor([0.25]))
    given = pairs([[LN3, 0.0]], [[4 * LN3, 0.0]], [[0.0, 0.0]], [1], [2])
    state = labels_of([1, 1, 0], [0.5, 0.99, 0.96])
    loss = SemiFL(mix_weight=weight).loss(nn.Flatten(), given, state, PROGRESS)
    mixed = 0.25 * math.log(4 / 3) + 0.75 * math.log(4)
    assert float(loss.total) == pytest.approx(math.log(4 / 3) + weight * mixed, rel=1e-6)
    assert loss.pseudo_labels.tolist() == [0]
    assert loss.accepted.tolist() == [1]
    assert float(loss.numbers["confident"]) == pytest.approx(2 / 3)


def test_each_term_is_a_mean_over_the_batch(monkeypatch):
    """Two equal pairs have the loss of one pair; each row has its own labels."""
    monkeypatch.setattr(module, "draw_mixing_shares", lambda *_: torch.tensor([0.25]))
    one = pairs([[LN3, 0.0]], [[4 * LN3, 0.0]], [[0.0, 0.0]], [1], [0])
    two = pairs(
        [[LN3, 0.0], [0.0, LN3]], [[4 * LN3, 0.0], [0.0, 4 * LN3]], [[0.0, 0.0]] * 2, [1, 0], [0, 1]
    )
    state = labels_of([0, 1], [1.0, 1.0])
    first, second = (
        SemiFL().loss(nn.Flatten(), given, state, PROGRESS).total for given in (one, two)
    )
    assert float(first) == pytest.approx(float(second), rel=1e-6)


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.seen = linear(), []

    def forward(self, images):
        self.seen.append(images.detach())
        return self.inner(images)


def test_one_lambda_a_batch_mixes_weak_views_and_the_strong_view_stays_alone():
    method, network = SemiFL(), Recorder()
    given = batch_for(method)
    method.loss(network, given, state_of(method, network), PROGRESS)
    (weak, strong), (mix,) = given.unlabeled, given.labeled
    alone, mixed = network.seen
    assert torch.equal(alone, strong)
    shares = (mixed - mix) / (weak - mix)
    expected = float(pieces.draw_mixing_shares(1, 0.75, stream(1)))
    assert torch.allclose(shares, torch.full_like(shares, expected), atol=1e-2)
    assert not torch.equal(mixed, mix)


def test_without_mixing_the_mixed_image_is_the_weak_view():
    network = Recorder()
    given = batch_for(SemiFL())
    SemiFL(alpha=0).loss(network, given, state_of(SemiFL(), network), PROGRESS)
    assert torch.equal(network.seen[1], given.unlabeled[0])


def test_lambda_is_not_folded():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); mixing weights are the same draws, folded at 1/2."""
    for alpha in (0.1, 0.75, 4.0):
        shares = pieces.draw_mixing_shares(20_000, alpha, stream()).double()
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
        folded = pieces.mixing_weights(20_000, alpha, "example", stream()).double()
        assert torch.allclose(folded, torch.maximum(shares, 1 - shares), atol=1e-7)
    assert (pieces.draw_mixing_shares(5, 0.0, stream()) == 1).all()


def test_a_threshold_above_one_is_refused():
    with pytest.raises(InputError, match="threshold"):
        METHODS.build({"kind": "semifl", "threshold": 1.01})


# the labels


def labeled_by(method, own, network, seed=0):
    """Return the state after `begin` at a client, with the network and the passes that it made."""
    state = state_of(method, network)
    seen = Watched(network)
    seen.train(network.training)
    fresh = Fresh(network, own.spec, own)
    one = learner_of(seen, {"labels": method.init_slot("labels", fresh)}, own)

    def show(view, ids=None, *, name):
        generator = rng.make_generator(seed, name)
        yield from show_in_order(view, own.unlabeled, own, Augment(), state, generator)

    one.show = show
    method.begin(one)
    return one, seen


def test_all_images_are_labeled_once_in_evaluation_mode_outside_the_graph(hidden):
    network = build_network(LOUD, SemiFL(), hidden.spec, 0).train()
    with torch.no_grad():  # running statistics that are not those of a batch
        network(2 * torch.randn(16, *hidden.spec.shape, generator=stream()) + 1)
    before = snapshot(network)
    one, seen = labeled_by(SemiFL(), hidden, network)
    assert seen.passes == [(len(hidden), False)]
    generator = rng.make_generator(0, "labels")
    ((_, weak),) = show_in_order("weak", hidden.unlabeled, hidden, Augment(), {}, generator)
    confidence, classes = predict(copy.deepcopy(network).eval(), weak).max(1)
    assert torch.equal(one.state["labels"]["classes"], classes)
    assert torch.equal(one.state["labels"]["confidence"], confidence)
    assert not any(tensor.requires_grad for tensor in one.state["labels"].values())
    assert equal(before, snapshot(network))  # running statistics among them
    assert all(layer.training for layer in network.modules())


def test_a_given_label_stays_and_counts_as_confident():
    """No predicted label is confident enough; four examples have labels 0 to 3."""
    own = small_shard()
    one, _ = labeled_by(SemiFL(threshold=1), own, linear())
    labels = one.state["labels"]
    assert labels["classes"][:4].tolist() == [0, 1, 2, 3]
    assert labels["confidence"][:4].tolist() == [1, 1, 1, 1]
    assert (labels["confidence"][4:] < 1).all()
    chosen = SemiFL(threshold=1).pools(one)
    assert chosen.unlabeled.tolist() == [0, 1, 2, 3]


LABELS = []
"""Labels of the unlabeled batches, with their ids, at each step."""


class Noted(SemiFL):
    """Note the labels of every step, and the received model's labels."""

    def begin(self, learner):
        LABELS.clear()
        super().begin(learner)

    def after_step(self, learner, batch, loss):
        LABELS.append((batch, loss, snapshot(learner.network)))


def received_by(own):
    """Return the network that `train_client` begins with, and the weak views that it labels."""
    network = build_network(MODEL, SemiFL(), own.spec, 0)
    generator = rng.make_generator(0, "show/labels", round=1, client=0)
    ((_, weak),) = show_in_order("weak", own.unlabeled, own, Augment(), {}, generator)
    return network, weak


def test_steps_move_the_weights_and_not_the_labels(hidden):
    network, weak = received_by(hidden)
    received = predict(network.eval(), weak).argmax(1)
    train = Train(local_steps=6, batch_size=8, lr=0.5)
    train_client(Noted(threshold=0.1), hidden, train, model=MODEL)
    assert len(LABELS) == 6
    for batch, loss, _ in LABELS:
        assert torch.equal(loss.pseudo_labels, received[batch.unlabeled_ids])
        assert torch.equal(batch.labels, received[batch.labeled_ids])
    network.load_state_dict(LABELS[-1][2])
    assert not torch.equal(predict(network.eval(), weak).argmax(1), received)


# the two sets


def chosen(confidence):
    """Return the pools of a client with these confidences, whose labels are 0, 1, 2, ..."""
    count = len(confidence)
    images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
    own = Shard(images, torch.full((count,), -1), torch.zeros(count), SPEC)
    return SemiFL().pools(learner_of(linear(), labels_of(list(range(count)), confidence), own))


def test_the_fix_set_is_what_reaches_the_threshold():
    found = chosen([0.95, 0.9499999, 0.3, 1.0, 0.96])
    assert found.unlabeled.tolist() == [0, 3, 4]


def test_the_mix_set_is_all_examples_with_their_labels_whatever_their_confidence():
    found = chosen([0.99, 0.1, 0.99, 0.2, 0.3])
    assert found.labeled.tolist() == found.targets.tolist() == [0, 1, 2, 3, 4]
    assert found.replacement == "labeled"
    nothing = chosen([0.1, 0.2])
    assert (len(nothing), len(nothing.targets)) == (0, 0)


def test_as_many_images_are_mixed_in_as_are_fixed_drawn_anew_in_every_batch(hidden):
    """A fix set of one image makes batches of that image alone; its partners come from the whole shard, evenly."""
    network, weak = received_by(hidden)
    sure = predict(network.eval(), weak).amax(1)
    train = Train(local_steps=100, batch_size=8, lr=1e-9)
    train_client(Noted(threshold=float(sure.max())), hidden, train, model=MODEL)
    ids = torch.stack([batch.labeled_ids for batch, _, _ in LABELS])
    assert ids.shape == (100, 8)
    assert {i for batch, _, _ in LABELS for i in batch.unlabeled_ids.tolist()} == {
        int(sure.argmax())
    }
    counts, mean = ids.flatten().bincount(minlength=len(hidden)), 800 / len(hidden)
    assert (counts - mean).abs().max() < 5 * math.sqrt(mean)
    assert any(len(set(row)) < 8 for row in ids.tolist())  # with replacement


def test_a_client_without_a_confident_image_sits_out(hidden):
    before = snapshot(received_by(hidden)[0])
    after, report = train_client(SemiFL(threshold=1), hidden, model=MODEL)
    assert report.is_inactive
    assert (report.num_steps, report.accepted) == (0, 0)
    assert equal(before, after)
    one_label = dataclasses.replace(hidden, labels=hidden.labels.clone())
    one_label.labels[3] = 5
    after, report = train_client(SemiFL(threshold=1), one_label, model=MODEL)
    assert not report.is_inactive
    assert not equal(before, after)


@pytest.mark.parametrize("epochs", [0.5, 1, 5])
def test_an_epoch_is_a_pass_over_the_fix_set(hidden, epochs):
    """E epochs over F images in batches of B are ceil(E F / B) steps, and show each image E times, or once more."""
    network, weak = received_by(hidden)
    confidence = predict(network.eval(), weak).amax(1)
    size = 21
    threshold = float(confidence.sort(descending=True).values[size - 1])
    train = Train(local_epochs=epochs, batch_size=8)
    _, report = train_client(Noted(threshold=threshold), hidden, train, model=MODEL)
    assert report.numbers["confident"] == pytest.approx(size / len(hidden))
    assert report.num_steps == math.ceil(epochs * size / 8)
    shown = torch.cat([batch.unlabeled_ids for batch, _, _ in LABELS]).unique(return_counts=True)
    assert shown[1].max() <= math.ceil(8 * report.num_steps / size)
    draws = 8 * math.ceil(epochs * len(hidden) / 8)  # as many as a pass over all images takes
    assert report.accepted == pytest.approx(draws * size / len(hidden))
    assert report.considered == pytest.approx(draws)
    assert report.num_confident(0, len(hidden)) == pytest.approx(size)


def test_given_labels_are_not_measured_as_pseudo_labels(shard):  # noqa: F811
    """At a client whose only confident labels are given, every image without a label counts as not used."""
    held = int((shard.labels >= 0).sum())
    _, report = train_client(SemiFL(threshold=1), shard)
    assert held > 0
    assert report.num_steps > 0
    hidden = len(shard) - held
    assert report.considered == pytest.approx(3 * 8 * hidden / len(shard))
    assert report.accepted == 0
    assert report.num_confident(held, len(shard)) == held


def test_the_fix_set_is_measured_also_where_the_mix_set_holds_the_same_images(hidden):
    _, report = train_client(SemiFL(threshold=0), hidden)
    assert report.considered == report.accepted == report.judged == 3 * 8
    assert 0 <= report.right <= 24


def test_the_labels_are_made_for_the_shard_at_hand_and_never_travel():
    (slot,) = SemiFL().slots()
    assert slot.scope == "reset"
    own = Shard(
        torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.full((3,), -1), torch.zeros(3), SPEC
    )
    made = SemiFL().init_slot("labels", Fresh(linear(), SPEC, own))
    assert made["classes"].shape == made["confidence"].shape == (3,)
