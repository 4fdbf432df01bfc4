"""CBAFed: thresholds by class counts, the second most likely class, counts of the last round, and residual connections."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.clients.client_app import app
from fedssl.core import rng
from fedssl.data.shard import Shard
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.methods.base import Batch, Fresh
from fedssl.methods.cbafed import (
    CBAFed,
    class_thresholds,
    marks_passed,
    select,
    shares_of_ten,
)
from fedssl.methods.functional import predict, snapshot
from fedssl.models.cnn import CNN
from fedssl.record.rows import Observer
from fedssl.server.app import serve
from fedssl.training.batches import show_in_order
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from tests.helpers import federation_of, small_experiment
from tests.methods.examples import PROGRESS, SPEC, Watched, linear, state_of, stream
from tests.methods.examples import learner as learner_of
from tests.methods.examples import shard as small_shard
from tests.training.test_loop import equal, shard, train_client  # noqa: F401

MODEL = small_experiment().model

LOUD = CNN(widths=(4,), hidden=16, norm="batch", dropout=0.5)
"""A model whose evaluation mode differs from its training mode in two ways."""

SIZE = 20
"""Images of the client `known`."""


@pytest.fixture
def hidden(shard):  # noqa: F811
    """A client without a label."""
    return dataclasses.replace(shard, labels=torch.full_like(shard.labels, -1))


@pytest.fixture
def known(shard):  # noqa: F811
    """A small client all of whose images are labeled."""
    images, truth = shard.images[:SIZE], shard.truth[:SIZE]
    return Shard(images, truth.clone(), truth, shard.spec)


def cbafed(**settings):
    """Return the method without its warm-up, so that a first round gives pseudo-labels."""
    return CBAFed(**{"warm_up": 0.0, **settings})


# thresholds


def test_thresholds_by_hand():
    """The shares .5, .3 and .2 deviate by .1528 (two degrees of freedom), so the third threshold is .2 + .84 - .1528."""
    found = class_thresholds(torch.tensor([0.5, 0.3, 0.2]), 0.84, 0.95)
    assert found.tolist() == pytest.approx([0.95, 0.95, 0.8872], abs=5e-5)


def test_thresholds_of_ten_classes_by_hand():
    """Five classes of share .15 and five of .05 deviate by .05 sqrt(10 / 9) = .0527."""
    counts = torch.tensor([3.0] * 5 + [1.0] * 5)
    found = class_thresholds(shares_of_ten(counts), 0.84, 0.95)
    spread = 0.05 * math.sqrt(10 / 9)
    assert found.tolist() == pytest.approx([0.99 - spread] * 5 + [0.89 - spread] * 5)


def test_a_more_frequent_class_has_the_higher_threshold():
    counts = torch.tensor([40.0, 5.0, 20.0, 60.0])
    found = class_thresholds(shares_of_ten(counts), 0.5, 1.0)
    assert found.argsort().tolist() == counts.argsort().tolist()
    assert found.unique().numel() == 4


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_even_counts_mean_the_same_for_any_number_of_classes(num_classes):
    shares = shares_of_ten(torch.full((num_classes,), 7.0))
    assert torch.allclose(shares, torch.full((num_classes,), 0.1))
    found = class_thresholds(shares, 0.84, 0.95)
    assert torch.allclose(found, torch.full((num_classes,), 0.94))


def test_shares_do_not_depend_on_the_scale_of_the_counts_and_zeros_are_even():
    counts = torch.tensor([8.0, 1.0, 3.0])
    assert torch.allclose(shares_of_ten(counts / 9), shares_of_ten(counts))
    assert shares_of_ten(torch.zeros(4)).tolist() == pytest.approx([0.1] * 4)


# labels


def test_labels_by_hand():
    """A label must exceed its threshold; if not, the second class counts if it is rare, however unlikely it is."""
    probs = torch.tensor(
        [
            [0.80, 0.15, 0.05],  # above .75
            [0.75, 0.05, 0.20],  # at the threshold; the second class, 2, is rare
            [0.75, 0.20, 0.05],  # at the threshold; the second class, 1, is not rare
            [0.10, 0.90, 0.00],  # above .85
            [0.00, 0.80, 0.20],  # below .85; the second class, 2, is rare
            [0.30, 0.30, 0.40],  # below .6; the most likely class is rare, and that does not count
        ]
    )
    thresholds, is_rare = torch.tensor([0.75, 0.85, 0.6]), torch.tensor([False, False, True])
    classes, reason = select(probs, thresholds, is_rare)
    assert reason.tolist() == [1, 2, 0, 1, 2, 0]
    assert classes[reason > 0].tolist() == [0, 2, 1, 2]


def begun(method, own, network, counts=None, progress=PROGRESS):
    """Return the learner after `begin` at a client, and the network with its passes."""
    seen = Watched(network)
    seen.train(network.training)
    state = {
        s.name: method.init_slot(s.name, Fresh(network, own.spec, own)) for s in method.slots()
    }
    if counts is not None:
        state["counts"]["classes"] = torch.tensor(counts)
    one = learner_of(seen, state, own, progress)

    def show(view, ids=None, *, name):
        yield from show_in_order(view, ids, own, Augment(), state, rng.make_generator(0, name))

    one.show = show
    method.begin(one)
    return one, seen


def test_unlabeled_images_are_labeled_once_in_evaluation_mode_outside_the_graph(hidden):
    network = build_network(LOUD, cbafed(), hidden.spec, 0).train()
    with torch.no_grad():  # running statistics that are not those of a batch
        network(2 * torch.randn(16, *hidden.spec.shape, generator=stream()) + 1)
    before = snapshot(network)
    one, seen = begun(cbafed(base=0.0), hidden, network)
    assert seen.passes == [(len(hidden), False)]
    ids, generator = hidden.unlabeled, rng.make_generator(0, "labels")
    ((_, weak),) = show_in_order("weak", ids, hidden, Augment(), {}, generator)
    network.eval()
    assert torch.equal(one.state["labels"]["classes"], predict(network, weak).argmax(1))
    assert (one.state["labels"]["reason"] == 1).all()
    assert equal(before, snapshot(network))


def test_labeled_images_keep_their_labels_and_get_no_pseudo_label(shard):  # noqa: F811
    one, seen = begun(cbafed(base=0.0), shard, build_network(MODEL, cbafed(), shard.spec, 0))
    chosen = cbafed(base=0.0).pools(one)
    assert seen.passes == [(len(shard) - len(shard.labeled), False)]
    assert torch.equal(chosen.labeled, shard.labeled)
    assert torch.equal(chosen.unlabeled, (shard.labels < 0).nonzero().squeeze(1))
    assert chosen.targets is None


def test_labels_follow_the_counts_that_came_and_not_the_clients_own():
    """The network is likely to say class 3, which rarely was a label last round: its threshold is low."""
    own, network = small_shard(), linear()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.bias[3] = math.log(
            9 * 0.7 / 0.3
        )  # probability .7, about .033 of each other class
        network.head.bias[0] = 0.01  # the second most likely class
    settings = cbafed(base=0.7, rare_share=0.0)
    rare, common = [5.0] * 10, [5.0] * 10
    rare[3], common[3] = 0.0, 50.0
    assert (begun(settings, own, network, rare)[0].state["labels"]["reason"][4:] == 1).all()
    assert (begun(settings, own, network, common)[0].state["labels"]["reason"] == 0).all()
    second = begun(cbafed(), own, network, [0.0] + [5.0] * 9)[0].state["labels"]
    assert (second["reason"][4:] == 2).all()  # no label was of class 0, so it is rare
    assert (second["classes"][4:] == 0).all()


def test_an_epoch_repeats_the_labeled_images(known):
    method, network = cbafed(labeled_passes=11), build_network(MODEL, cbafed(), known.spec, 0)
    chosen = method.pools(begun(method, known, network)[0])
    assert torch.equal(chosen.labeled.bincount(), torch.full((len(known),), 11))
    _, report = train_client(method, known, Train(local_epochs=1, batch_size=8))
    assert report.num_steps == math.ceil(11 * len(known) / 8)


# the loss


def test_the_loss_by_hand():
    """The labeled image has probability 3/4 of its label, and the other two 3/4 and 1/4 of theirs."""
    sure, unsure = [math.log(3), 0.0], [0.0, math.log(3)]
    given = Batch(
        labeled=(torch.tensor([sure]).view(1, 1, 1, 2),), labels=torch.tensor([0]), labeled_ids=torch.tensor([0]),
        unlabeled=(torch.tensor([sure, unsure]).view(2, 1, 1, 2),), unlabeled_ids=torch.tensor([1, 3]),
        generator=stream(),
    )  # fmt: skip
    labels = {"classes": torch.tensor([0, 0, 1, 0]), "reason": torch.tensor([0, 1, 0, 2])}
    state = {"labels": labels, "counts": {"classes": torch.tensor([1.0, 1.0])}}
    loss = cbafed(unlabeled_weight=2 / 3).loss(nn.Flatten(), given, state, PROGRESS)
    expected = math.log(4 / 3) + 2 / 3 * (math.log(4 / 3) + math.log(4)) / 2
    assert float(loss.total) == pytest.approx(expected, rel=1e-6)
    assert (loss.pseudo_labels.tolist(), loss.accepted.tolist()) == ([0, 0], [1, 1])
    found = {name: float(number) for name, number in loss.numbers.items()}
    assert found == pytest.approx({"selected": 0.5, "second": 0.25, "threshold": 0.94})


# clients of every kind


def test_a_client_weighs_its_labels_and_its_pseudo_labels(hidden):
    network = build_network(MODEL, cbafed(), hidden.spec, 0)
    generator = rng.make_generator(0, "show/labels", round=1, client=0)
    ((_, weak),) = show_in_order("weak", hidden.unlabeled, hidden, Augment(), {}, generator)
    confidence = predict(network.eval(), weak).amax(1).sort(descending=True).values
    base = float(confidence[20:22].mean()) - 0.1  # above it are 21 images
    _, report = train_client(cbafed(base=base), hidden, model=MODEL)
    assert report.numbers["selected"] == pytest.approx(21 / len(hidden))
    assert report.num_confident(0, len(hidden)) == pytest.approx(21)


def test_a_client_without_any_label_sits_out_and_one_with_labels_only_trains_on_them(hidden, known):
    before = snapshot(build_network(MODEL, cbafed(), hidden.spec, 0))
    after, report = train_client(cbafed(), hidden, model=MODEL)
    assert report.is_inactive
    assert equal(before, after)
    after, report = train_client(cbafed(), known, model=MODEL)
    assert not report.is_inactive
    assert math.isfinite(report.loss)
    assert not equal(before, after)
    assert report.num_confident(len(known), len(known)) == len(known)


def test_in_the_warm_up_clients_train_on_labels_alone(hidden, shard):  # noqa: F811
    method = cbafed(base=0.0, warm_up=0.3)
    for round, is_warm in ((1, False), (3, False), (4, True)):
        _, report = train_client(method, hidden, round=round)
        assert report.is_inactive != is_warm
        assert (report.considered > 0) == is_warm
    plain, _ = train_client(cbafed(base=0.0, unlabeled_weight=0), shard)
    assert equal(plain, train_client(method, shard)[0])


# class counts


def counts_after(method, own, counts=None, **kwargs):
    network = build_network(MODEL, method, own.spec, 0)
    state = {
        s.name: method.init_slot(s.name, Fresh(network, own.spec, own)) for s in method.slots()
    }
    if counts is not None:
        state["counts"]["classes"] = counts
    train_client(method, own, model=MODEL, state=state, **kwargs)
    return state


def test_a_client_sends_its_labels_and_pseudo_labels_by_class(shard, known):  # noqa: F811
    sent = counts_after(cbafed(), known)["counts"]["classes"]
    assert torch.equal(sent, torch.bincount(known.truth, minlength=10).float())
    state = counts_after(cbafed(base=0.0), shard)
    given = torch.bincount(shard.labels[shard.labeled], minlength=10)
    guessed = torch.bincount(state["labels"]["classes"][shard.labels < 0], minlength=10)
    assert torch.equal(state["counts"]["classes"], (given + guessed).float())
    assert state["counts"]["classes"].sum() == len(shard)


def test_nothing_of_earlier_rounds_is_in_the_counts(known):
    """Counts that came decide which images are chosen, and do not go on by themselves."""
    first, second = (
        counts_after(cbafed(), known, torch.tensor(came))["counts"]["classes"]
        for came in ([1.0] * 10, [100.0] + [0.0] * 9)
    )
    assert torch.equal(first, second)


class Rounds(Observer):
    """Keep what every round ends with."""

    def __init__(self):
        self.ends = []

    def round_ended(self, end):
        self.ends.append(end)


def rounds_of(**settings):
    """Return the federation of a run of six rounds with one labeled client, and the ends of its rounds."""
    federation = {"labels": {"kind": "some_clients", "labeled_clients": 1}, "sample": 3}
    experiment = small_experiment(
        **{"rounds": 6, "federation": federation, "strategy": "cbafed"} | settings
    )
    seen = Rounds()
    serve(experiment, SerialGrid(Apps(app), 6), [seen])
    return federation_of(experiment), seen.ends


def test_the_servers_counts_are_those_of_the_last_cohort_up_to_scale():
    """No pseudo-label passes, so the counts are the mean of the labels of the round's labeled clients, if there are any."""
    labels = {"kind": "some_clients", "labeled_clients": 3}
    drawn, ends = rounds_of(
        method={"kind": "cbafed", "warm_up": 0.0, "base": 1.0, "most": 1.0, "rare_share": 0.0},
        federation={"labels": labels, "sample": 2},
    )
    counts, sizes = np.ones(10), set()
    for end in ends:
        own = [drawn.shard(row.client) for row in end.clients if row.status == "ok"]
        sizes.add(len(own))
        if own:
            counts = np.mean([np.bincount(s.labels[s.labeled], minlength=10) for s in own], axis=0)
        np.testing.assert_allclose(end.model.state["counts/classes"], counts, rtol=1e-6)
    assert sizes == {0, 1, 2}


@pytest.mark.parametrize("weight", ["confident", "labeled"])
def test_where_all_weights_are_zero_the_model_stays(weight):
    """The unlabeled clients of a round without the labeled client sit out, or train and have no weight."""
    base = 0.0 if weight == "labeled" else 1.0
    _, ends = rounds_of(
        method={"kind": "cbafed", "warm_up": 0.0, "base": base, "most": 1.0, "rare_share": 0.0},
        strategy={"kind": "cbafed", "weight": weight, "every": 2},
    )
    stayed = set()
    for last, end in itertools.pairwise(ends):
        has_labels = any(row.num_labeled for row in end.clients)
        is_same = all(np.array_equal(end.model.arrays[n], a) for n, a in last.model.arrays.items())
        assert is_same != has_labels
        stayed.add(is_same)
        assert all(np.isfinite(array).all() for array in end.model.arrays.values())
    assert stayed == {False, True}


# local residual connections


@pytest.mark.parametrize(
    ("passes", "marks"), [(0, 0), (1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (501, 101)]
)
def test_connections_come_after_the_first_pass_and_every_five(passes, marks):
    assert marks_passed(passes, 5) == marks


WEIGHTS = []
"""Weights after each step, before `after_step`, and after it."""


class Noted(CBAFed):
    def after_step(self, learner, batch, loss):
        before = snapshot(learner.network)
        super().after_step(learner, batch, loss)
        WEIGHTS.append((before, snapshot(learner.network)))


def steps_of(method, own, **train):
    WEIGHTS.clear()
    train_client(method, own, Train(batch_size=8, **train), model=LOUD)
    return [index for index, (before, after) in enumerate(WEIGHTS) if not equal(before, after)]


def test_a_labeled_client_goes_back_four_fifths_of_the_way(known):
    """A pass takes n / 8 steps; passes 1, 6 and 11 end at the first steps that reach them, the last one at the end."""
    method = Noted(labeled_passes=11)
    moved = steps_of(method, known, local_epochs=1)
    first, *due = (math.ceil(passes * len(known) / 8) - 1 for passes in (1, 6, 11))
    assert moved == due
    assert due[-1] == len(WEIGHTS) - 1
    old = WEIGHTS[first][1]
    network = build_network(LOUD, method, known.spec, 0)
    parameters = {name for name, _ in network.named_parameters()}
    assert parameters < old.keys()
    for step in due:
        before, after = WEIGHTS[step]
        for name in parameters:
            expected = (4 * old[name].double() + before[name].double()) / 5
            assert torch.allclose(after[name].double(), expected, atol=1e-6)
        for name in old.keys() - parameters:
            assert torch.equal(after[name], before[name])
        old = after


def test_no_other_client_makes_local_connections(known, shard, hidden):  # noqa: F811
    enough = {"local_steps": math.ceil(7 * len(known) / 8)}
    assert steps_of(Noted(base=0.0, warm_up=0.0), known, **enough)
    assert steps_of(Noted(base=0.0, warm_up=0.0), shard, **enough) == []
    assert steps_of(Noted(base=0.0, warm_up=0.0), hidden, **enough) == []
    assert steps_of(Noted(residual_share=0.0), known, **enough) == []
    assert steps_of(Noted(), known, local_steps=math.ceil(5 * len(known) / 8)) == []


# what travels


def test_pseudo_labels_stay_and_counts_travel():
    labels, counts = cbafed().slots()
    assert (labels.scope, counts.scope) == ("reset", "server")
    assert (counts.merge.weight, counts.merge.over) == ("uniform", "cohort")
    made = state_of(cbafed(), linear())
    assert made["counts"]["classes"].tolist() == [1.0] * SPEC.num_classes
